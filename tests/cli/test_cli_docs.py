"""`docs/cli.md` tells what the parsers know."""

from helpers.scripts import load_script

from captioner.cli import main as cli


def test_the_page_is_up_to_date(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    script = load_script("scripts/cli_docs.py")
    assert script.PAGE.read_text("utf-8") == script.page(), "run python scripts/cli_docs.py"


def test_the_page_names_every_option():
    page = load_script("scripts/cli_docs.py").page()
    for name, command in cli.build_parser()[1].items():
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for action in command._actions[1:]:  # the first is --help
            assert all(f"`{flag}" in section for flag in action.option_strings)
