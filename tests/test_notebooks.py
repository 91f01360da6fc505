"""The notebooks are clean as stored, and run from top to bottom in a fresh kernel."""

import ast
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|tmp|work|mnt|opt|var)/|\b[A-Z]:\\")
SECONDS = 600  # for one cell; on two quiet cores a whole notebook takes less than 90


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code(notebook):
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestStored:
    def test_it_is_a_notebook_for_any_python_kernel(self, path):
        notebook = load(path)
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert "version" not in notebook["metadata"].get("language_info", {})
        for cell in notebook["cells"]:
            assert cell["cell_type"] in ("markdown", "code")
            assert set(cell) <= {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
            assert source(cell).strip()

    def test_cells_have_distinct_ids(self, path):
        ids = [cell["id"] for cell in load(path)["cells"]]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", cell_id) for cell_id in ids)

    def test_it_holds_no_outputs(self, path):
        cells = [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
        assert all(cell["metadata"] == {} for cell in cells)

    def test_it_opens_with_its_only_title(self, path):
        prose = [source(cell) for cell in load(path)["cells"] if cell["cell_type"] == "markdown"]
        assert source(load(path)["cells"][0]) == prose[0]
        assert re.match(r"# \S", prose[0])
        assert len(re.findall(r"^# ", "\n".join(prose), flags=re.MULTILINE)) == 1

    def test_it_names_no_path_of_a_machine(self, path):
        assert not MACHINE_PATH.search(path.read_text(encoding="utf-8"))

    def test_it_defines_no_function_and_no_class(self, path):
        nodes = [node for cell in code(load(path)) for node in ast.walk(ast.parse(cell))]
        assert not [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]

    def test_synthetic_data_is_called_so(self, path):
        text = path.read_text(encoding="utf-8")
        assert "glyphs13" not in text or "synthetic" in text.lower()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_a_clean_kernel(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a second thread makes so small a trunk slower
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert not list(tmp_path.iterdir())  # results go to temporary folders
