"""Docs, configs and code agree: generated files, links and anchors, paths, commands, options and config keys."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from cli.main import app
from simv0.config.load import all_keys, load_config

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

FOLDERS = (".", "docs", "docs/design", "benchmarks/results")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
FILES = (".py", ".md", ".h5", ".safetensors")
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)


@pytest.mark.parametrize("name", generate.FILES)
def test_generated_files_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text() == generate.FILES[name](), "run: python docs/generate.py"


def test_the_recommended_config_is_the_defaults(tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text("data: {train_split_path: data/train.jsonl, val_split_path: data/val.jsonl}")
    assert load_config(ROOT / "configs/sim_v0.yaml") == load_config(bare)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_a_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMV0_REAL", "/real")
    config = load_config(path)
    assert config.model.K <= config.model.F


def test_the_rover_recipe_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMV0_REAL", "/real")
    assert "training:" not in (ROOT / "configs/rover.yaml").read_text()


def test_readme_names_every_room_and_no_other() -> None:
    tree = re.search(r"```\n(simv0/  labels.py.*?)cache/  ", (ROOT / "README.md").read_text(), re.S)
    assert tree
    rooms = {path.parent.name for path in (ROOT / "simv0").glob("*/__init__.py")}
    assert re.findall(r"^ {8}(\w+)/ ", tree[1], re.M) == sorted(rooms, key=lambda room: tree[1].index(f" {room}/"))
    files = {path.name for path in (ROOT / "simv0").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b(\w+\.py)\b", tree[1])) == files


def test_the_picture_of_the_rooms_names_every_room() -> None:
    picture = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs/design/architecture.md").read_text(), re.S)
    assert picture
    rooms = {path.parent.name for path in (ROOT / "simv0").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"\w+", picture[1]))


@cache
def anchors(page: Path) -> set[str]:
    """What may stand behind `#` in a link to the page, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Links of a page that lead to no file or to no heading."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", FENCE.sub("", text)):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{target}: no such heading"


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, continued ones joined, and code within sentences."""
    for block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()[1:-1]
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def wrong_commands(text: str) -> Iterator[str]:
    """Commands of simv0 that do not exist, or take no such option or key."""
    group = get_command(app)
    own = {option for parameter in group.params for option in parameter.opts}
    for line in code(text):
        found = re.search(r"(?:^simv0|-m cli) +(-*[a-z].*)", line.strip())
        if not found:
            continue
        words = shlex.split(found[1], comments=True)
        if words[0].startswith("-"):
            yield from (f"{line}: no option {word}" for word in words if word.startswith("-") and word not in own)
            continue
        if words[0] not in group.commands:
            yield f"{line}: no command {words[0]}"
            continue
        parameters = group.commands[words[0]].params
        options = {"--help"} | {option for one in parameters for option in [*one.opts, *one.secondary_opts]}
        for i, word in enumerate(words[1:], 1):
            if word.startswith("--") and word.partition("=")[0] not in options:
                yield f"{line}: no option {word}"
            if word == "--set" and words[i + 1].partition("=")[0] not in {*all_keys(), "section.key"}:
                yield f"{line}: no key {words[i + 1]}"


def wrong_names(text: str) -> Iterator[str]:
    """Config keys, paths of the repository and benchmarks, within sentences, that do not exist."""
    sections = {key.split(".")[0] for key in all_keys()}
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        key = re.match(r"(\w+)\.(\w+)(?=$|:|=| )", span)
        if key and key[1] in sections and key[0] not in all_keys() and not span.endswith(FILES):
            yield f"{span}: no such key"
        if (
            re.fullmatch(r"(simv0|cache|cli|tests|docs|configs|benchmarks)/[\w/.-]+", span)
            and not (ROOT / span).exists()
        ):
            yield f"{span}: no such file"
    for name, path in re.findall(r"`(\w+)` in `((?:simv0|cache|cli)/[\w/]+\.py)`", text):
        if (ROOT / path).exists() and not re.search(rf"^(def|class) {name}\b", (ROOT / path).read_text(), re.M):
            yield f"{name}: not in {path}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        if not (ROOT / f"{module.replace('.', '/')}.py").exists():
            yield f"{module}: no such benchmark"


def without_history(page: Path) -> str:
    """A page's text; of the changelog nothing but links, for it names what is gone."""
    return page.read_text() if page.name != "CHANGELOG.md" else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_what_exists(page: Path) -> None:
    text = without_history(page)
    assert [*broken_links(page, page.read_text()), *wrong_commands(text), *wrong_names(text)] == []


def messages() -> Iterator[str]:
    """Every text in the product's code, with `...` for what is filled in."""
    for folder in ("simv0", "cache", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_troubleshooting_quotes_messages_that_exist() -> None:
    """The code in a table's first column, where that begins with code."""
    known = "\n".join(messages())
    cells = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    quotes = [quote.replace("\\|", "|") for cell in cells for quote in re.findall(r"`([^`]+)`", cell)]
    assert len(quotes) > 40
    assert [quote for quote in quotes if not re.search(re.escape(quote).replace(r"\.\.\.", ".*"), known)] == []


def test_code_refers_to_pages_that_exist() -> None:
    """Docstrings and comments, with `*` for the hardware and the date of a measurement."""
    sources = [
        path for folder in ("simv0", "cache", "cli", "benchmarks", "configs") for path in (ROOT / folder).rglob("*")
    ]
    for path in [*sources, *(ROOT / "tests").rglob("*.py")]:
        if path.suffix in (".py", ".yaml") and path != Path(__file__):
            for name in re.findall(r"\b((?:docs|benchmarks/results)/[\w*/.-]+\.md)", path.read_text()):
                assert list(ROOT.glob(name)), f"{path.relative_to(ROOT)}: {name}"


def test_the_checks_of_pages_find_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: here\n[a](#a-title-here) [b](#nowhere) [c](gone.md)\n```\n# no title\n```\n[d](#no-title)\n"
    )
    assert [*broken_links(page, page.read_text())] == [
        "#nowhere: no such heading",
        "gone.md: no such file",
        "#no-title: no such heading",
    ]
    block = "```sh\nsimv0 train --config my.yaml --resum  # --not this\nsimv0 tran\n```\n"
    text = block + "`simv0 check --set data.no=1` `data.no` `Gone` in `cli/main.py`"
    assert [*wrong_commands(text), *wrong_names(text)] == [
        "simv0 train --config my.yaml --resum  # --not this: no option --resum",
        "simv0 tran: no command tran",
        "simv0 check --set data.no=1: no key data.no=1",
        "data.no: no such key",
        "Gone: not in cli/main.py",
    ]
