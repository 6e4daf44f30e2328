"""The README's commands, typed one after the other by a newcomer with a folder of good parts."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from conftest import plant, plate, save, scratch
from threecad.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

SETTINGS = {"training.steps": 2, "training.batch": 4, "method.image_size": 64, "evaluation.size": 64}
SHORT = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
"""What makes the README's fit one of seconds; everything else is typed as it stands there."""

PLAN = """
data = "parts"
methods = ["padim"]
backbone = "embedded"
[settings.method]
image_size = 64
features = 8
"""


def commands() -> list[list[str]]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line.partition("#")[0])[1:] for line in lines if line.startswith(".venv/bin/threecad")]


def spoilt(seed: int) -> object:
    part = plate(seed)
    part[scratch(seed) > 0] //= 4
    return part


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], embedded: str
) -> None:
    for folder, first, count in (("parts/good", 0, 24), ("new-parts", 100, 3), ("more-good", 200, 6)):
        for number in range(count):
            save(tmp_path / folder / f"{number:02}.png", plate(first + number))
    for number in range(4):
        save(tmp_path / "parts/defective" / f"{number}.png", spoilt(300 + number))
    plant(tmp_path / "parts")
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    typed = commands()
    assert [words[0] for words in typed][:2] == ["fit", "predict"] and len(typed) >= 10
    for words in typed:
        monkeypatch.setattr(sys, "argv", ["threecad", *words, *(SHORT if words[0] == "fit" else [])])
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capsys.readouterr()
        assert stopped.value.code in (0, None), f"threecad {' '.join(words)}: {out.err}"
    assert (
        (tmp_path / "found" / "predictions.csv")
        .read_text()
        .splitlines()[0]
        .startswith("image,score,good_share,verdict")
    )
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
