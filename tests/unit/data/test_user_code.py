"""The user's own functions come from the file that was hashed, and fail with one clear line."""

import hashlib
import subprocess
import sys
import textwrap

import pytest

from tuneline.config.sections.sources import AlignConfig
from tuneline.config.validation import user_code as found
from tuneline.data import reward_function, user_code
from tuneline.data.align import align
from tuneline.errors import DataError, RecipeError

REWARD = "def reward(prompts, completions, references):\n    return [{value} for _ in prompts]\n"
ARGUMENTS = (["a"], ["b"], ["c"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", None)):
            del sys.modules[name]


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def raised(name):
    with pytest.raises(RecipeError) as caught:
        reward_function.load_reward_function(name)(*ARGUMENTS)
    return str(caught.value)


@pytest.mark.parametrize("first", [False, True], ids=["package first", "file first"])
def test_a_file_beside_an_installed_package_of_its_name_is_the_one_that_runs(folder, first):
    if first:
        import evaluate
    path = write(folder, "evaluate.py", REWARD.format(value=7))

    assert reward_function.load_reward_function("evaluate:reward")(*ARGUMENTS) == [7.0]

    assert found.source_hash("evaluate:reward", "key") == hashlib.sha256(path.read_bytes()).hexdigest()
    import evaluate

    assert hasattr(evaluate, "load"), "our own code still gets the library"


def test_a_file_named_like_a_module_that_is_imported_already_runs_as_a_format(folder):
    write(folder, "json.py", "def read(record):\n    return {'text': record['q'] + '!'}\n")

    assert align.align_record({"q": "x"}, "json:read")["text"] == "x!"


def test_neighbours_are_imported_and_hide_no_library(folder):
    write(folder, "own_words.py", "def value():\n    return 3\n")
    write(folder, "evaluate.py", "NUMBER = 4\n")
    write(
        folder,
        "own_reward.py",
        """
        import evaluate
        import own_words

        def reward(prompts, completions, references):
            import own_later
            return [own_words.value() + evaluate.NUMBER + own_later.VALUE for _ in prompts]
        """,
    )
    write(folder, "own_later.py", "VALUE = 10\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate"]:
        del sys.modules[name]

    assert reward_function.load_reward_function("own_reward:reward")(*ARGUMENTS) == [17.0]

    import evaluate

    assert hasattr(evaluate, "load")


def test_a_module_of_a_package_imports_its_neighbours_relatively(folder):
    write(folder, "steps/__init__.py", "")
    write(folder, "steps/inner/words.py", "VALUE = 5\n")
    write(folder, "steps/inner/rewards.py", "from .words import VALUE\n" + REWARD.format(value="VALUE"))

    assert reward_function.load_reward_function("steps.inner.rewards:reward")(*ARGUMENTS) == [5.0]

    write(folder, "steps/inner/rewards.py", REWARD.format(value=6))
    assert reward_function.load_reward_function("steps.inner.rewards:reward")(*ARGUMENTS) == [6.0]


def test_an_edit_of_equal_size_and_time_is_seen(folder):
    import os

    path = write(folder, "own_same.py", REWARD.format(value=1))
    stat = path.stat()
    assert reward_function.load_reward_function("own_same:reward")(*ARGUMENTS) == [1.0]

    write(folder, "own_same.py", REWARD.format(value=2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert reward_function.load_reward_function("own_same:reward")(*ARGUMENTS) == [2.0]


def test_a_file_that_changed_since_the_run_began_is_refused(folder):
    write(folder, "own_changed.py", "def read(record):\n    return {'text': 'a'}\n")
    config = AlignConfig(format="own_changed:read", format_hash=found.format_hash("own_changed:read"))
    align.check_rows([("a.jsonl", 1, {})], config)

    write(folder, "own_changed.py", "def read(record):\n    return {'text': 'b'}\n")

    with pytest.raises(RecipeError, match=r"own_changed\.py changed since the run began\. Start the run again"):
        align.check_rows([("a.jsonl", 1, {})], config)


@pytest.mark.parametrize("code", ["", "0", "1", "'why'"])
def test_sys_exit_is_an_error_of_the_function_that_calls_it(folder, code):
    write(folder, "own_exit.py", f"import sys\n\ndef reward(prompts, completions, references):\n    sys.exit({code})\n")

    said = raised("own_exit:reward")

    assert "train.reward_function 'own_exit:reward' failed: called sys.exit(" in said
    assert "own_exit.py:4)" in said
    assert "\n" not in said


def test_sys_exit_while_importing_is_an_error_of_the_module(folder):
    write(folder, "own_exit.py", "import sys\nsys.exit(0)\n")

    assert "importing" in raised("own_exit:reward")
    assert "failed: called sys.exit(0)" in raised("own_exit:reward")
    assert "own_exit.py:2)" in raised("own_exit:reward")


def test_sys_exit_in_a_format_ends_the_run_with_an_error(folder):
    write(folder, "own_exit.py", "def read(record):\n    raise SystemExit\n")

    with pytest.raises(RecipeError, match=r"'own_exit:read': called sys\.exit\(None\) .*own_exit\.py:2"):
        align.align_record({"q": "x"}, "own_exit:read")


def test_a_generator_that_exits_while_it_is_read_is_an_error(folder):
    write(
        folder, "own_exit.py", "def reward(prompts, completions, references):\n    yield 1\n    raise SystemExit(0)\n"
    )

    assert "failed: called sys.exit(0)" in raised("own_exit:reward")


@pytest.mark.parametrize("where", ["import", "call"])
def test_ctrl_c_in_the_users_code_stays_ctrl_c(folder, where):
    body = "raise KeyboardInterrupt" if where == "call" else "pass"
    top = "" if where == "call" else "raise KeyboardInterrupt\n"
    write(folder, "own_stop.py", f"{top}def reward(prompts, completions, references):\n    {body}\n")

    with pytest.raises(KeyboardInterrupt):
        reward_function.load_reward_function("own_stop:reward")(*ARGUMENTS)


def test_an_error_names_the_line_of_the_users_file(folder):
    write(folder, "own_lines.py", "import json\n\ndef read(record):\n    return json.loads(record['q'])\n")

    with pytest.raises(DataError, match=r"own_lines:read failed: JSONDecodeError: .*own_lines\.py:4\)"):
        align.align_record({"q": "{"}, "own_lines:read")

    write(folder, "own_syntax.py", "def reward(:\n    pass\n")
    assert "own_syntax.py:1)" in raised("own_syntax:reward")


def test_an_installed_module_keeps_its_own_name(folder):
    function = user_code.load_function("tuneline.data.rewards:exact", "key")

    from tuneline.data import rewards

    assert function is rewards.exact


def test_a_run_with_an_exiting_module_has_not_exit_code_0(folder):
    write(folder, "own_exit.py", "import sys\nsys.exit(0)\n")
    code = "from tuneline.data import reward_function; reward_function.load_reward('own_exit:reward')"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)

    assert run.returncode == 1
    assert "RecipeError" in run.stderr
