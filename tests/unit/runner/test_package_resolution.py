"""Packages of Tuneline take precedence over packages of the user with the same names."""

import subprocess
import sys

import pytest


@pytest.fixture
def folder(tmp_path):
    """A folder of a user with packages and modules of the same names."""
    for name in ("pipelines", "steps", "materializers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of the user')")
    (tmp_path / "evaluate.py").write_text("raise RuntimeError('the evaluate of the user')")
    return tmp_path


def run_script(code, folder):
    """Run code as a script of the user, with its folder first on the path, as `zenml pipeline run` does."""
    (folder / "script.py").write_text(code)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.zenml
def test_root_modules_import_the_packages_of_tuneline(folder):
    code = (
        "import pathlib, sys; assert pathlib.Path(sys.path[0]) == pathlib.Path.cwd()\n"
        "import sft_pipeline, retrain_pipeline; from zenml.pipelines.pipeline_definition import Pipeline\n"
        "assert isinstance(sft_pipeline, Pipeline) and isinstance(retrain_pipeline, Pipeline)\n"
        "import steps.train, pipelines.sft, materializers, evaluate\n"
        "print(steps.__file__, pipelines.__file__, materializers.__file__, evaluate.__file__)"
    )

    run = run_script(code, folder)

    assert run.returncode == 0, run.stderr[-2000:]
    assert str(folder) not in run.stdout


def test_an_already_imported_package_of_the_user_is_reported(folder):
    (folder / "steps" / "__init__.py").write_text("")
    code = "import steps; from tuneline.runner import package_resolution; package_resolution.import_packages()"

    run = run_script(code, folder)

    line = run.stderr.splitlines()[-1]
    assert f"The package 'steps' was imported from {folder / 'steps'}, and Tuneline has one of that name." in line
    assert line.endswith("Rename yours, or start from another folder.")
