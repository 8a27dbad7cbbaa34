"""The notebook runs as it stands, with a tiny agent in place of the one that it asks for."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_agent.ipynb"

# Takes the place of the values in the cell tagged "parameters"
TINY = """
PROTOCOL = dict(action_repeat=8, max_episode_steps=20)
STEPS = 60
EPISODES = 2
SETTINGS = dict(
    horizon=2, num_samples=16, num_elites=4, num_pi_trajs=2, iterations=1, batch_size=16, learning_starts=50,
    pretrain_gradient_steps=2, policy_kwargs=dict(latent_dim=16, enc_dim=16, net_arch=[16], num_q=2, num_bins=11),
)
"""
WITHOUT_OPENGL = """
def no_opengl(self):
    raise RuntimeError("This needs OpenGL.")


gym.Wrapper.render = no_opengl
"""


def outputs(cell: NotebookNode) -> dict[str, str]:
    """:return: what a cell printed as ``text``, and what it showed by MIME type"""
    shown = {"text": "".join(output.text for output in cell.outputs if output.output_type == "stream")}
    for output in cell.outputs:
        shown |= output.get("data", {})
    return shown


def code_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_runs_top_to_bottom(notebook, monkeypatch, tmp_path):
    pytest.importorskip("dm_control")
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    notebook.cells.insert(place + 1, new_code_cell(TINY, id="tiny"))
    video = code_cells(notebook)["video"].source
    notebook.cells += [new_code_cell(WITHOUT_OPENGL, id="without"), new_code_cell(video, id="no-video")]

    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()  # raises cells' errors

    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    means = re.findall(
        r"^(random policy|TDMPC2) +(\d+\.\d) \+- \d+\.\d$", outputs(cells["evaluate"])["text"], re.MULTILINE
    )
    assert [name for name, _ in means] == ["random policy", "TDMPC2"]
    assert all(0 <= float(mean) <= 20 * 8 for _, mean in means)
    assert "image/png" in outputs(cells["curve"])
    assert "image/png" in outputs(cells["video"]) or outputs(cells["video"])["text"].startswith("No video: ")
    assert outputs(cells["no-video"]) == {"text": "No video: This needs OpenGL.\n"}


def test_is_stored_with_the_outputs_of_one_run(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    assert {name for name, cell in cells.items() if cell.outputs} == {"evaluate", "curve", "video"}
    assert "image/png" in outputs(cells["curve"]) and "image/png" in outputs(cells["video"])
    assert NOTEBOOK.stat().st_size < 500_000
