"""The terminal of a training run belongs to its reporter: libraries keep quiet on it."""

import logging
import os
import warnings


def silence_libraries() -> None:
    """Switch off the progress bars and notes of libraries; their errors still get through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    for name in ("accelerate", "torch.distributed", "wandb"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # notes for developers on what a later version will change
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
