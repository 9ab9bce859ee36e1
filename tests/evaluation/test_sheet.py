import numpy as np
import torch
from PIL import Image

from magicvideo.data.text_files import read_prompts
from magicvideo.evaluation.prompt_sets import from_uint8
from magicvideo.evaluation.sheet import DEFAULT_PROMPTS, write_sheet


def test_the_shipped_list_has_24_prompts():
    assert len(read_prompts(DEFAULT_PROMPTS)) == 24


def test_each_row_shows_its_video_from_first_to_last_frame(tmp_path):
    ramp = torch.linspace(-1, 1, 7)[:, None, None, None].expand(7, 3, 24, 24)
    rows = [("getting brighter", ramp), ("getting darker", ramp.flip(0))]
    write_sheet(rows, 4, tmp_path / "sheet.png")
    pixels = np.array(Image.open(tmp_path / "sheet.png")).astype(int)
    assert pixels.shape == (2 * 96 + 3 * 4, 220 + 4 * 100, 3)
    rising = pixels[52, [220 + 48 + 100 * place for place in range(4)], 0]
    falling = pixels[152, [220 + 48 + 100 * place for place in range(4)], 0]
    assert rising.tolist() == [0, 85, 170, 255]
    assert falling.tolist() == [255, 170, 85, 0]
    assert (pixels[:100, :220] < 100).any()  # words


def test_frames_in_cells_of_their_own_size_are_left_as_they_are(tmp_path):
    frame = torch.randint(256, (1, 20, 20, 3), dtype=torch.uint8)
    write_sheet([("noise", from_uint8(frame))], 1, tmp_path / "sheet.png", cell=20)
    pixels = np.array(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape == (28, 244, 3)
    assert np.array_equal(pixels[4:24, 220:240], frame[0])
