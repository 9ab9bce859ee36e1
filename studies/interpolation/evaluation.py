"""The interpolation's evaluation, start to end: real key frames, then generated ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from magicvideo.data.dataset import ClipDataset
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.prompt_sets import sample_prompts
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
from studies.interpolation.keyframe_pulse import PulseScore, score_pulse
from studies.interpolation.scores import MethodScores, score_interpolation


@dataclass(frozen=True, kw_only=True)
class InterpolationScores:
    """All scores.

    Attributes:
        methods: Of every way to fill the gaps between real key frames, and of the real clips.
        seams: Of the ways between generated key frames, and of the real clips; may be empty.
    """

    methods: list[MethodScores]
    seams: list[PulseScore]


@dataclass(frozen=True, kw_only=True)
class InterpolationEvaluation:
    """What is evaluated and on what.

    Attributes:
        pipeline: A model with an interpolator.
        judge: Gives the features of the Frechet distances.
        data: Folder of clips; the held-out are used.
        clips: How many, each once and on a plain background.
        keys: Key frames of each.
        steps: Numbers of diffusion steps that are compared.
        generated: How many videos are generated for `seams`.
        noise_levels: Diffusion steps up to which the network's view of generated keys is noised.
        seed: Of the draw of clips; the noise of clip or video k has the seed k.
    """

    pipeline: MagicVideoPipeline
    judge: Judge
    data: Path
    clips: int
    keys: int
    steps: tuple[int, ...]
    generated: int
    noise_levels: tuple[int, ...]
    seed: int

    def run(self, progress: Callable[[str, int, int], None]) -> InterpolationScores:
        """Score everything.

        Raises:
            UserError: If the model has no interpolator, or there are too few clips.
        """
        dataset = ClipDataset(self.data, ("heldout",))
        # too few clips for one half are refused before hours are spent on the other
        sample_prompts(dataset, max(self.clips, self.generated), self.seed)
        methods = score_interpolation(
            self.pipeline,
            self.judge,
            dataset,
            self.clips,
            num_keys=self.keys,
            steps=self.steps,
            seed=self.seed,
            on_clip=lambda done: progress("interpolation", done, self.clips),
        )
        seams = []
        if self.generated:
            seams = score_pulse(
                self.pipeline,
                dataset,
                self.generated,
                noise_levels=self.noise_levels,
                seed=self.seed,
                on_video=lambda done: progress("generated", done, self.generated),
            )
        return InterpolationScores(methods=methods, seams=seams)
