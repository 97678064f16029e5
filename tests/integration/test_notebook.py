"""examples/first_steps.ipynb: what is committed is whole, and what it shows is what the files of its run say."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from simv0.datasets import ManifestDataset
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor
from simv0.stream import Stream

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_steps.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said_in(notebook: Any, code: str) -> str:
    """What the cell with this code wrote, and then what it showed."""
    (cell,) = [cell for cell in code_cells(notebook) if (cell.source + "\n").startswith(code)]
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    return "".join([*streams, *(output.data["text/plain"] for output in cell.outputs if "data" in output)])


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pictures(notebook: Any) -> list[str]:
    cells = code_cells(notebook)
    return [
        output.data["image/png"] for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})
    ]


def test_the_committed_notebook_is_whole_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert "/tmp/" not in NOTEBOOK.read_text()  # where it was executed is nobody's business
    assert len(pictures(notebook)) == 3
    assert NOTEBOOK.stat().st_size < 150_000
    assert re.findall(r"/(?:home|work|root|Users)/|site-packages|\\u001b", NOTEBOOK.read_text()) == []
    links = re.findall(r"\]\((\.\./[^)]+)\)", NOTEBOOK.read_text())
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook, executed from the first cell to the last in an empty folder, and what it left there."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=600, iopub_timeout=600, raise_on_iopub_timeout=True, resources=place, kernel_name="python3"
    )
    return client.execute(), folder / "runs/first_steps"


def test_what_it_shows_is_what_its_files_say(executed: tuple[Any, Path]) -> None:
    notebook, root = executed
    assert len(pictures(notebook)) == 3
    best = load_checkpoint(root / "run/checkpoints/best.pt").meta
    epochs = json_lines(root / "run/metrics/val_metrics.jsonl")
    rows = [line.split() for line in said_in(notebook, "run = fit").splitlines() if re.match(r" +[0-9]+ ", line)]
    assert [(row[0], row[2], row[7]) for row in rows] == [
        (str(row["epoch"]), f"{row['loss']:.3f}", f"{row['composite']:.3f}") for row in epochs
    ]
    shown = said_in(notebook, "run\n")
    assert re.search(rf"^ +{best.epoch} .* {best.metrics['composite']:.3f} ", shown, re.M)
    assert shown.endswith("best checkpoint: runs/first_steps/run/checkpoints/best.pt")

    metrics = json.loads((root / "run/evaluation/metrics.json").read_text())
    assert f"│ {metrics['risk_macro_f1']:.3f} │ risk, F1 averaged" in said_in(notebook, "result =")
    told = said_in(notebook, "print(")
    assert f"risk, macro F1: {metrics['risk_macro_f1']}\n" in told
    assert f"of high: {metrics['classes']['risk']['high']}\n" in told
    assert (root / "run/evaluation/report.html").exists()
    shown_one = ast.literal_eval(told[told.index("{'sample_id'") :])
    assert shown_one == json_lines(root / "run/evaluation/predictions.jsonl")[130]


def test_its_stream_is_ours(executed: tuple[Any, Path]) -> None:
    notebook, root = executed
    stream = Stream(Predictor.load(root / "run/checkpoints/best.pt"), live=False)
    val = ManifestDataset(str(root / "world/val.jsonl"))
    expected, before = [], None
    for sample in (val[i] for i in range(len(val))):
        if sample["group"] == "val-001":
            state = stream.push(sample["frames"][-1], sample["telemetry"], sample["t"])
            if (state.risk, state.alarm) != before:
                action = state.prediction["action"] if state.prediction else "-"
                expected.append([f"{sample['t']:.2f}", state.risk, action, str(state.alarm)])
            before = state.risk, state.alarm
    told = re.findall(r"t = +(\S+) s: risk (\S+) +action (\S+) +alarm (\S+)", said_in(notebook, "stream ="))
    assert [list(line) for line in told] == expected
    assert len(expected) > 3
