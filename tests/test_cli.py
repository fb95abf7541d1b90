"""The command line: help without a wait, one-line errors, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vesalius.cli import VERBS, main


def test_overview_lists_every_verb(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in [*VERBS, "list", "info"])


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_examples(verb, capsys):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: vesalius" in out and "examples:" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretain"], "did you mean 'pretrain'?"),
        (["info", "usmf"], "did you mean 'usfm'?"),
        (["pretrain", "usmf", "--data", "x", "--out", "y"], "did you mean 'usfm'?"),
        (["pretrain", "usfm", "--data", "x", "--out", "y", "--stepz", "3"], "did you mean '--steps'?"),
        (["pretrain", "usfm", "--data", "x", "--out", "y", "--steps", "many"], "--steps cannot be 'many'"),
        (["pretrain", "usfm", "--data", "x", "--out", "y", "--model.mask_ration", "1"], "'--model.mask_ratio'?"),
        (["pretrain", "usfm", "--data", "x", "--out", "y", "--preset", "tin"], "did you mean 'tiny'?"),
        (["pretrain", "usfm", "--data", "nowhere.parquet", "--out", "y"], "nowhere.parquet"),
        (["evaluate", "nowhere"], "nowhere"),
        (["claim", "usmf"], "did you mean 'usfm'?"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("vesalius: ") and says in lines[0]
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_list_and_info_do_not_import_torch():
    code = "import sys; from vesalius.cli import main; main(['list']); main(['info', 'usfm']); "
    code += "print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "10.1016/j.media.2024.103202" in out and out.strip().endswith("False")


def test_print_config_gives_yaml_that_config_takes(capsys, tmp_path):
    words = ["pretrain", "usfm", "--data", "x.parquet", "--out", "y", "--preset", "tiny", "--model.mask_ratio", "0.5"]
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    text = capsys.readouterr().out
    assert "mask_ratio: 0.5" in text
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit):
        main(["pretrain", "usfm", "--config", str(config), "--print_config"])
    assert "mask_ratio: 0.5" in capsys.readouterr().out
