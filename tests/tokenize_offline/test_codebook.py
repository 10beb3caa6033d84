import copy

import pytest
import torch
import torch.nn.functional as F

from infra.schedules import nearest
from tokenize_offline.codebook import fit_codebooks, restart_dead
from tokenize_offline.quantizer import Quantizer

GRIDS = nearest(1, 1).grids[:12]


def test_fitting_lowers_the_error_and_sets_units() -> None:
    torch.manual_seed(0)
    q, generator = Quantizer(128, 3, 5), torch.Generator().manual_seed(0)
    latents = [(torch.randn(4, 8, 16, 16) * 3, GRIDS) for _ in range(2)]
    errors = fit_codebooks(q, latents, rounds=6, generator=generator)
    assert errors[-1] < 0.9 * errors[0]
    units = q.log_magnitude.detach().exp()
    assert (units[11] > 0).all()
    assert torch.equal(units[12:], units[11:12].expand(6, -1))  # scales without data


def test_fitting_is_deterministic() -> None:
    tables = []
    for _ in range(2):
        torch.manual_seed(0)
        q, generator = Quantizer(32, 3, 5), torch.Generator().manual_seed(0)
        fit_codebooks(q, [(torch.randn(2, 8, 16, 16), GRIDS)], 3, generator)
        tables.append(q.pixel.detach())
    assert torch.equal(*tables)


def test_dead_codes_start_again_near_the_residuals() -> None:
    torch.manual_seed(0)
    q, generator = Quantizer(16, 3, 5), torch.Generator().manual_seed(0)
    with torch.no_grad():
        q.pixel[4] = 1_000.0
    used = torch.ones(16, dtype=torch.bool)
    before = q.pixel.detach().clone()
    latents = (torch.randn(1, 8, 16, 16), GRIDS)
    assert restart_dead(q, used, latents, generator) == 0
    used[4] = False
    assert restart_dead(q, used, latents, generator) == 1
    assert q.pixel[4].abs().max() < 10
    assert torch.equal(q.pixel[:4], before[:4])


def test_codes_that_start_again_differ_from_each_other() -> None:
    torch.manual_seed(0)
    q, generator = Quantizer(300, 3, 5), torch.Generator().manual_seed(0)
    latents = (torch.randn(2, 8, 16, 16), GRIDS)
    assert restart_dead(q, torch.zeros(300, dtype=torch.bool), latents, generator) == 300
    assert (
        len({tuple(row) for row in q.pixel.tolist()}) == 300
    )  # no residual twice while others are left


def test_restarting_is_a_function_of_its_arguments() -> None:
    torch.manual_seed(0)
    q, latents = Quantizer(64, 3, 5), (torch.randn(2, 8, 16, 16), GRIDS)
    used = torch.arange(64) % 3 > 0
    first, second = copy.deepcopy(q), copy.deepcopy(q)
    for number, one in enumerate((first, second)):
        torch.manual_seed(number)  # the global state plays no part
        restart_dead(one, used, latents, torch.Generator().manual_seed(5))
    assert torch.equal(first.pixel, second.pixel)
    assert torch.equal(first.semantic, second.semantic)
    assert torch.equal(first.pixel[used], q.pixel[used])
    assert not torch.equal(first.pixel[~used], q.pixel[~used])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fitting_and_restarting_on_a_gpu_do_what_the_cpu_does() -> None:
    torch.manual_seed(0)
    q, features = Quantizer(64, 3, 5), torch.randn(2, 8, 16, 16)
    twin, errors = copy.deepcopy(q).cuda(), []
    for one, latent in ((q, features), (twin, features.cuda())):
        generator = torch.Generator().manual_seed(0)
        errors.append(fit_codebooks(one, [(latent, GRIDS)], 3, generator))
        used = torch.arange(64, device=latent.device) > 9
        assert restart_dead(one, used, (latent, GRIDS), generator) == 10
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)


def test_the_best_codes_met_are_kept_where_the_iteration_does_not_descend() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((4, 8, 3, 3), generator=generator)
    smooth = F.interpolate(coarse, size=GRIDS[-1], mode="bicubic")
    q = Quantizer(64, 4, 4)
    errors = fit_codebooks(q, [(smooth, GRIDS)], 12, generator)
    left = q.walk(smooth, GRIDS, lambda scale, rows: q.nearest(rows, scale)[0][..., 0])
    assert len(errors) == 13
    assert float(left.square().mean()) == pytest.approx(min(errors))
    assert errors[-1] > min(errors)  # else this shows nothing
