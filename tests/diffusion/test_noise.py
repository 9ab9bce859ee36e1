import pytest
import torch

from magicvideo.diffusion.noise import (
    correlated_noise,
    initial_latent_noise,
    noise_covariance,
    seeded_generator,
)
from magicvideo.rng import StackedGenerator

KNOWN = {0: [0.6002698, 1.0615771, 0.1960577], 2211: [1.0016246, -0.6015654, 0.6282136]}


@pytest.mark.parametrize("seed", KNOWN)
def test_a_seed_gives_the_recorded_noise(seed):
    assert initial_latent_noise(seed, (3, 1, 1, 1)).flatten().tolist() == pytest.approx(
        KNOWN[seed], abs=1e-6
    )


def test_noise_depends_only_on_the_seed():
    first = initial_latent_noise(3, (5, 2, 7, 3))
    torch.manual_seed(11)
    assert torch.equal(initial_latent_noise(3, (5, 2, 7, 3)), first)
    assert not torch.equal(initial_latent_noise(4, (5, 2, 7, 3)), first)


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.9])
def test_noise_is_standard_normal_with_the_requested_correlation(shared):
    noise = correlated_noise(
        (40, 3, 13, 17, 19), StackedGenerator([seeded_generator("clips")]), shared
    )
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    first, _, third = noise.unbind(dim=1)
    assert (first * third).mean() == pytest.approx(shared, abs=0.02)
    assert (first[0] * first[1]).mean().abs() < 0.05


@pytest.mark.parametrize(("correlation", "decay"), [(0.0, 0.6), (0.89, 0.7), (0.5, 0.0)])
def test_noise_has_the_documented_covariance(correlation, decay):
    generator = StackedGenerator([seeded_generator("covariance")])
    noise = correlated_noise((64, 6, 3, 20, 20), generator, correlation, decay).double()
    tracks = noise.movedim(1, -1).flatten(0, -2)
    stated = noise_covariance(6, correlation, decay)
    assert stated.diagonal().tolist() == [1.0] * 6
    torch.testing.assert_close(torch.cov(tracks.T), stated, atol=0.03, rtol=0)


def test_longer_noise_has_the_same_covariance_and_zero_decay_is_constant_correlation():
    assert noise_covariance(5, 0.3, 0.0)[0, 3] == pytest.approx(0.3)
    longer, shorter = noise_covariance(9, 0.4, 0.8), noise_covariance(4, 0.4, 0.8)
    assert torch.equal(longer[:4, :4], shorter)


def test_generators_depend_on_every_part_of_the_key():
    seeds = {
        seeded_generator(*parts).initial_seed() for parts in [("a",), ("b",), ("a", 1), (1, "a")]
    }
    assert len(seeds) == 4
    assert seeded_generator("a", 1).initial_seed() in seeds
    assert all(0 <= seed < 2**63 for seed in seeds)
