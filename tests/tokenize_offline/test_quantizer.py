import copy

import pytest
import torch
import torch.nn.functional as F

from infra.schedules import NUM_SCALES, SCHEDULES, nearest
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, to_unit, whole
from tokenize_offline.quantizer import Quantizer, exact_float32

GRIDS = nearest(3, 4).grids[:12]


MOST_DIFFERENT = 1e-3  # share of codes that float32's rounding may change ...
NEAR_TIE = 5e-6  # ... where two codes are as near as this: squared distances in a range of 0 to 12


def quantizer(num_codes: int = 64, **settings: float) -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(num_codes, 4, 6, **settings)


def latents(batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 10, *GRIDS[-1], generator=generator)


def test_shared_index_minimises_the_weighted_sum_of_both_branches() -> None:
    q = quantizer(pixel_weight=3.0)
    rows = torch.randn(1, 50, 10)
    index, distance = q.nearest(rows, scale=2, k=64)

    def unit(x: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.pad(x, (0, 1), value=1.0), dim=-1)

    semantic = torch.cdist(unit(rows[0, :, :4]), unit(q.semantic)) ** 2
    pixel = torch.cdist(unit(rows[0, :, 4:]), unit(q.pixel)) ** 2
    expected, order = (semantic + 3 * pixel).sort(dim=1)
    torch.testing.assert_close(distance[0], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(index[0, :, 0], order[:, 0])


@pytest.mark.parametrize("k", [1, 3, 4])
def test_ties_go_to_the_lowest_index(k: int) -> None:
    q = quantizer(num_codes=8)
    with torch.no_grad():  # codes 1, 3, 5 and 7 are equal, and nearest
        q.semantic[1::2], q.pixel[1::2] = q.semantic[1].clone(), q.pixel[1].clone()
    rows = torch.cat([q.semantic[1], q.pixel[1]])[None, None].detach()
    assert q.nearest(rows, 0, k)[0].flatten().tolist() == [1, 3, 5, 7][:k]


def test_memory_bound_does_not_change_codes() -> None:
    q, features = quantizer(), latents()
    codes = q.encode(features, GRIDS)
    q.memory_bytes = 4 * 64 * 2 * 3  # three rows of each image at a time
    assert torch.equal(q.encode(features, GRIDS), codes)


@pytest.mark.parametrize("num_codes", [4_096, 5_000])
def test_codes_depend_on_neither_batch_nor_chunks_nor_threads(num_codes: int) -> None:
    q, grids = quantizer(num_codes), nearest(2, 3).grids[:14]
    features = torch.randn(3, 10, *grids[-1], generator=torch.Generator().manual_seed(2))
    codes = q.encode(features, grids)
    rows = features.flatten(2).mT
    eight = q.nearest(rows, 13, 8)
    alone = torch.cat([q.encode(one[None], grids) for one in features])
    assert torch.equal(alone, codes)
    assert torch.equal(q.nearest(rows[1:2], 13, 8)[1], eight[1][1:2])  # to the last bit
    for rows_held in (1, 7, 100_000):
        q.memory_bytes = 4 * num_codes * rows_held
        assert torch.equal(q.encode(features, grids), codes)
        index, distance = q.nearest(rows, 13, 8)
        assert torch.equal(index, eight[0])
        torch.testing.assert_close(distance, eight[1], atol=NEAR_TIE, rtol=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(q.encode(features, grids), codes)
    finally:
        torch.set_num_threads(threads)


def float64_distances(q: Quantizer, rows: torch.Tensor, scale: int) -> torch.Tensor:
    """Squared distances of rows [n, D] to all codes, [n, V]."""
    unit = q.log_magnitude[scale].double().exp()
    total = torch.zeros(len(rows), q.num_codes, dtype=torch.float64)
    branches = rows.double().cpu().split(list(q.dims), dim=1)  # type: ignore[no-untyped-call]
    for branch, (table, weight) in enumerate(((q.semantic, 1.0), (q.pixel, q.pixel_weight))):
        points = F.normalize(F.pad(branches[branch] / unit[branch], (0, 1), value=1.0), dim=1)
        codes = F.normalize(F.pad(table.double(), (0, 1), value=1.0), dim=1)
        total += weight * (2 - 2 * points @ codes.mT)
    return total


def check_near_ties(distances: torch.Tensor, codes: torch.Tensor) -> int:
    """How many codes [n] are not the nearest by float64; each may be farther by NEAR_TIE only."""
    least, nearest_code = distances.min(dim=1)
    gap = distances.gather(1, codes[:, None])[:, 0] - least
    assert gap.max() < NEAR_TIE
    return int((codes != nearest_code).sum())


@torch.inference_mode()
def test_float32_changes_a_code_at_near_ties_only(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    q, different, total = tokenizer.quantizer, 0, 0

    def choose(scale: int, rows: torch.Tensor) -> torch.Tensor:
        nonlocal different, total
        codes = q.nearest(rows, scale)[0][..., 0]
        different += check_near_ties(float64_distances(q, rows[0], scale), codes[0])
        total += codes.numel()
        return codes

    for photo, level in zip(photographs, (256, 256, 256, 256, 512), strict=True):
        schedule, rgb = whole(photo, level)
        grids = schedule.grids[: NUM_SCALES[level]]
        q.walk(tokenizer.features(to_unit([rgb])), grids, choose)
    assert total > 5_000
    assert different <= MOST_DIFFERENT * total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_a_gpu_chooses_other_codes_at_near_ties_only(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    """Scale by scale on the same residuals: after one other code all later scales may differ."""
    q, on_gpu = tokenizer.quantizer, copy.deepcopy(tokenizer.quantizer).cuda()
    different, total = 0, 0

    def choose(scale: int, rows: torch.Tensor) -> torch.Tensor:
        nonlocal different, total
        codes = q.nearest(rows, scale)[0][..., 0]
        with exact_float32(torch.device("cuda")):
            others = on_gpu.nearest(rows.cuda(), scale)[0][..., 0].cpu()
        check_near_ties(float64_distances(q, rows[0], scale), others[0])
        different += int((codes != others).sum())
        total += codes.numel()
        return codes

    for photo in photographs:
        schedule, rgb = whole(photo, 256)
        q.walk(tokenizer.features(to_unit([rgb])), schedule.grids[:12], choose)
    assert different <= MOST_DIFFERENT * total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_gives_the_losses_of_the_cpu() -> None:
    q, features, keep = quantizer(), latents(), [True, False] * 6
    expected = q(features, GRIDS, keep)
    found = q.cuda()(features.cuda(), GRIDS, keep)
    torch.testing.assert_close(found.commit_loss.cpu(), expected.commit_loss)
    torch.testing.assert_close(found.codebook_loss.cpu(), expected.codebook_loss)
    assert (found.codes.cpu() == expected.codes).double().mean() > 0.99


def test_codes_do_not_depend_on_autocast_or_matmul_precision() -> None:
    q, features = quantizer(), latents()
    codes = q.encode(features, GRIDS)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(q.encode(features, GRIDS), codes)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_decode_gives_what_encoding_took_off() -> None:
    q, features = quantizer(), latents()
    left = q.walk(features, GRIDS, lambda scale, rows: q.nearest(rows, scale)[0][..., 0])
    decoded = q.decode(q.encode(features, GRIDS), GRIDS)
    torch.testing.assert_close(features - left, decoded, atol=1e-5, rtol=1e-5)
    assert torch.equal(q.decode(q.encode(features, GRIDS), GRIDS), decoded)


def test_a_scale_means_the_same_at_every_level() -> None:
    q = quantizer()
    with torch.no_grad():
        q.log_magnitude.copy_(-torch.arange(36.0).view(18, 2) / 36)
    square = nearest(1, 1)
    codes = torch.arange(square.num_codes(12))[None] % 64
    at_256 = q.decode(codes, square.grids[:12])
    at_1024 = q.decode(codes, square.grids, num_scales=12)  # the prefix of a longer schedule
    assert at_1024.shape[2:] == (64, 64)
    means = F.interpolate(at_1024, size=(16, 16), mode="area")
    # Bicubic means of the same cells: equal but for the kernel's overshoot.
    assert F.cosine_similarity(means.flatten(), at_256.flatten(), dim=0) > 0.9
    for scale, (height, width) in enumerate(square.grids[:12]):
        part = torch.arange(height * width)[None] % 64
        cells = q.vectors(part, scale).mT.reshape(1, 10, height, width)
        for size in ((16, 16), (32, 32), (64, 64)):  # the same picture elements, raised further
            field = q.field(part, scale, (height, width), size)
            raised = (
                F.interpolate(cells, size, mode="bicubic") if size != (height, width) else cells
            )
            assert torch.equal(field, raised)
    one = torch.tensor([[5]])
    field = q.field(one, 0, (1, 1), (8, 8))
    torch.testing.assert_close(field[0, :, 3, 3], q.vectors(one, 0)[0, 0])


def test_training_pass_is_straight_through_and_moves_both_codebooks() -> None:
    q, features = quantizer(), latents().requires_grad_()
    out = q(features, GRIDS)
    torch.testing.assert_close(out.features, q.decode(out.codes, GRIDS), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(out.features.sum(), features, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(features))
    torch.autograd.backward(out.codebook_loss)
    assert all(p.grad is not None and p.grad.any() for p in (q.semantic, q.pixel, q.log_magnitude))
    assert features.grad is None


def test_plain_encoding_is_the_training_pass_without_dropout() -> None:
    q, features = quantizer(), latents()
    out = q(features, GRIDS)
    assert torch.equal(out.codes, q.encode(features, GRIDS))


def test_dropped_scales_have_no_codes() -> None:
    q, keep = quantizer(), [scale % 2 == 0 for scale in range(12)]
    codes = q(latents(), GRIDS, keep).codes
    sizes = [height * width for height, width in GRIDS]
    for part, kept in zip(codes.split(sizes, dim=1), keep, strict=True):
        assert bool((part >= 0).all()) is kept


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="7 x 9 cells do not fit a schedule that ends in"):
        quantizer().encode(torch.zeros(1, 10, 7, 9), SCHEDULES[0].grids[:12])


def test_error_falls_with_every_scale(tokenizer: Tokenizer, photographs: list[Photograph]) -> None:
    total = torch.zeros(12)
    for photo in photographs:
        schedule, rgb = whole(photo, 256)
        grids = schedule.grids[:12]
        with torch.inference_mode():
            features = tokenizer.features(to_unit([rgb]))
            codes = tokenizer.quantizer.encode(features, grids)
            for scale in range(12):
                decoded = tokenizer.quantizer.decode(codes, grids, scale + 1)
                total[scale] += F.mse_loss(decoded, features)
    assert (total.diff() < 0).all()
