"""RD++: its noise, its losses against a literal retyping, its projections against the published counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from threecad.methods.rdpp import RDPP, RectangleNoise, contrast_loss, projection, reconstruction_loss, simplex_field
from threecad.nets.distillation import flattened_cosine_loss
from threecad.records import Batch


def noisy(images: torch.Tensor, seed: int, reseed: bool = False) -> Batch:
    return RectangleNoise(reseed)(images, torch.Generator().manual_seed(seed))


def test_projections_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in projection(channels).parameters()) for channels in (256, 512, 1024)]
    assert counts == [737_856, 2_950_272, 11_798_784]
    assert sum(counts) == 15_486_912


def test_rectangles_are_10_to_31_px_long_and_leave_the_border_free() -> None:
    masks = noisy(torch.zeros(400, 3, 64, 80), seed=0).mask[:, 0]
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for across, side in ((2, 64), (1, 80)):
        inside = masks.amax(dim=across)  # (B, side)
        lengths = inside.sum(dim=1)
        first = inside.argmax(dim=1)
        assert (lengths.min(), lengths.max()) == (10, 31)
        assert first.min() == 1
        assert (first + lengths).max() == side - 1
    full = masks.amax(dim=2).sum(dim=1) * masks.amax(dim=1).sum(dim=1)
    assert torch.equal(masks.sum(dim=(1, 2)), full)  # a filled rectangle each


def test_noise_is_added_inside_the_rectangle_only_and_not_clipped() -> None:
    images = torch.ones(16, 3, 64, 64)
    batch = noisy(images, seed=1)
    assert batch.image is images
    outside = (1 - batch.mask).expand_as(images).bool()
    assert torch.equal(batch.augmented[outside], images[outside])
    assert batch.augmented.max() > 1.05
    assert (batch.augmented - images).abs().max() <= 0.2 * simplex_field(31).abs().max() + 1e-6


def patch(batch: Batch, image: int) -> torch.Tensor:
    """The noise (3, 10, 10) at the upper left of an image's rectangle."""
    row, column = (int(batch.mask[image, 0].amax(dim=axis).argmax()) for axis in (1, 0))
    return (batch.augmented - batch.image)[image, :, row : row + 10, column : column + 10]


def test_every_image_gets_the_same_corner_of_the_noise_unless_reseeded() -> None:
    images = torch.zeros(2, 3, 64, 64)
    fixed, fresh = noisy(images, seed=2), noisy(images, seed=2, reseed=True)
    torch.testing.assert_close(patch(fixed, 0), 0.2 * simplex_field(31)[:, :10, :10])
    torch.testing.assert_close(patch(fixed, 0), patch(fixed, 1))
    assert not torch.allclose(patch(fresh, 0), patch(fresh, 1), atol=1e-3)


def test_noise_is_the_same_for_the_same_seed() -> None:
    images = torch.rand(3, 3, 64, 64)
    assert torch.equal(noisy(images, seed=3).augmented, noisy(images, seed=3).augmented)
    assert not torch.equal(noisy(images, seed=3).mask, noisy(images, seed=4).mask)


def test_images_smaller_than_the_largest_rectangle_still_fit_one() -> None:
    mask = noisy(torch.zeros(50, 3, 32, 32), seed=5).mask
    assert (mask.sum(dim=(1, 2, 3)) >= 100).all()
    assert mask[:, :, 0].sum() == mask[:, :, -1].sum() == 0


def test_the_noise_is_opensimplex_in_six_octaves() -> None:
    from opensimplex import OpenSimplex

    simplex = OpenSimplex(seed=0)
    channel, row, column = 2, 7, 11
    expected = sum(
        0.6**k * simplex.noise3(column / wavelength, row / wavelength, channel / wavelength)
        for k, wavelength in enumerate((32, 16, 8, 4, 2, 1))
    )
    assert simplex_field(31)[channel, row, column].item() == pytest.approx(expected, rel=1e-5)


def test_losses_equal_a_literal_retyping() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(2, c, 4, 4, generator=generator) for c in (3, 5)] for _ in range(2))
    reconstruction = sum((1 - F.cosine_similarity(n, p, dim=1)).mean() for n, p in zip(first, second, strict=True))
    target = -torch.ones(2)
    near = [second[0] + 0.3 * first[0], second[1]]  # one scale beyond the margin, one within
    contrast = sum(
        F.cosine_embedding_loss(n.flatten(1), p.flatten(1), target, margin=0.5)
        for n, p in zip(near, second, strict=True)
    )
    torch.testing.assert_close(reconstruction_loss(first, second), reconstruction)
    torch.testing.assert_close(contrast_loss(near, second), contrast)
    assert contrast > 0.1


def test_terms_are_weighted_as_published() -> None:
    torch.manual_seed(0)
    detector = RDPP(RDPP.Config.tiny()).eval()
    batch = noisy(torch.rand(2, 3, 64, 64), seed=6)
    with torch.no_grad():
        terms = detector.losses(batch)
        clean, altered = detector.teacher(batch.image), detector.teacher(batch.augmented)
        projected = [project(f) for project, f in zip(detector.projections, clean, strict=True)]
        projected_altered = [project(f) for project, f in zip(detector.projections, altered, strict=True)]
        expected = flattened_cosine_loss(clean, detector.recovery(projected)) + 0.2 / 1.11 * (
            0.01 * reconstruction_loss(projected_altered, projected) + 0.1 * contrast_loss(altered, projected)
        )
    torch.testing.assert_close(sum(terms.values()), expected)


def test_two_optimisers_share_a_step_of_two_batches() -> None:
    detector = RDPP(RDPP.Config.tiny())
    (phase,) = detector.phases(textures=None)
    assert phase.accumulate == 2
    assert [(o.param_groups[0]["lr"], o.param_groups[0]["betas"]) for o in phase.optimizers] == [
        (5e-3, (0.5, 0.999)),
        (1e-3, (0.5, 0.999)),
    ]
    trained = {id(p) for part in phase.trains for p in part.parameters()}
    assert trained == {id(p) for o in phase.optimizers for group in o.param_groups for p in group["params"]}
