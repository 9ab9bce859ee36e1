import pytest
import torch

from magicvideo.diffusion.noise import per_sample_generators
from magicvideo.rng import StackedGenerator


def numbers(draws, count):
    return [
        draws.uniform(count),
        draws.normal((count, 3, 2)),
        draws.integers(1000, count),
        draws.normal((2 * count, 5)).unflatten(0, (count, 2)),  # two frames a sample
    ]


def test_the_random_numbers_of_a_sample_do_not_depend_on_the_batch():
    together = numbers(per_sample_generators(6, 5, 11, "stage"), 5)
    for first, count in ((6, 2), (8, 3)):
        apart = numbers(per_sample_generators(first, count, 11, "stage"), count)
        for all_of, some in zip(together, apart, strict=True):
            assert torch.equal(all_of[first - 6 : first - 6 + count], some)
    for kind in together:
        assert len({tuple(row.flatten().tolist()) for row in kind}) == 5
    assert not torch.equal(together[0], per_sample_generators(6, 5, 12, "stage").uniform(5))


def test_sampling_for_some_does_not_advance_the_others():
    chosen = torch.tensor([True, False, True, False])
    some, all_of = per_sample_generators(0, 4, 7), per_sample_generators(0, 4, 7)
    first = some.select(chosen).normal((2, 6))
    assert torch.equal(first, all_of.normal((4, 6))[chosen])
    fresh = per_sample_generators(0, 4, 7)
    assert torch.equal(some.uniform(4)[1], fresh.uniform(4)[1])


def test_one_generator_serves_any_batch_like_torch():
    draws = StackedGenerator([torch.Generator().manual_seed(3)])
    expected = torch.Generator().manual_seed(3)
    assert torch.equal(draws.uniform(7), torch.rand(7, generator=expected))
    assert torch.equal(draws.normal((3, 40)), torch.randn(3, 40, generator=expected))
    assert torch.equal(draws.integers(9, 5), torch.randint(9, (5,), generator=expected))
    assert draws.select(torch.tensor([False, True])) is draws


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="7 rows are not the same for 3 streams"):
        per_sample_generators(0, 3, "a").uniform(7)
