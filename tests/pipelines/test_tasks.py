"""Functions done as Ray tasks, or here."""

from pathlib import Path

import pytest

from pipelines.tasks import each


def touch(folder: str, name: str) -> None:
    if name == "bad":
        raise ValueError("a bug")
    Path(folder, name).touch()


@pytest.mark.parametrize("with_ray", [False, True])
def test_all_are_done(tmp_path: Path, with_ray: bool, request: pytest.FixtureRequest) -> None:
    if with_ray:
        request.getfixturevalue("ray_session")
    names = [str(number) for number in range(12)]
    done = each(touch, [(str(tmp_path), name) for name in names])
    assert list(done) == [None] * 12
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert list(each(touch, [])) == []
    with pytest.raises(ValueError, match="a bug"):
        list(each(touch, [(str(tmp_path), "bad")]))
