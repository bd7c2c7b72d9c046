"""User functions are loaded from the file that was hashed, and their errors are reported in one line."""

import hashlib
import subprocess
import sys
import textwrap

import pytest

from tuneline.config.sections.sources import AlignConfig
from tuneline.config.validation import user_code as user_code_config
from tuneline.data import reward_function, user_code
from tuneline.data.align import align
from tuneline.errors import DataError, RecipeError

REWARD = "def reward(prompts, completions, references):\n    return [{value} for _ in prompts]\n"
ARGUMENTS = (["a"], ["b"], ["c"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory; modules imported from it are removed afterwards."""
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


def error_of(name):
    with pytest.raises(RecipeError) as error:
        reward_function.load_reward_function(name)(*ARGUMENTS)
    return str(error.value)


@pytest.mark.parametrize("first", [False, True], ids=["package first", "file first"])
def test_a_user_file_with_the_name_of_an_installed_package_is_used(folder, first):
    if first:
        import evaluate
    path = write(folder, "evaluate.py", REWARD.format(value=7))

    assert reward_function.load_reward_function("evaluate:reward")(*ARGUMENTS) == [7.0]

    assert user_code_config.source_hash("evaluate:reward", "key") == hashlib.sha256(path.read_bytes()).hexdigest()
    import evaluate

    assert hasattr(evaluate, "load"), "other code still imports the library"


def test_a_user_file_with_the_name_of_an_imported_module_is_used_as_a_format(folder):
    write(folder, "json.py", "def read(record):\n    return {'text': record['q'] + '!'}\n")

    assert align.align_record({"q": "x"}, "json:read")["text"] == "x!"


def test_modules_of_the_same_folder_are_imported_without_hiding_libraries(folder):
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


def test_a_module_of_a_package_can_use_relative_imports(folder):
    write(folder, "steps/__init__.py", "")
    write(folder, "steps/inner/words.py", "VALUE = 5\n")
    write(folder, "steps/inner/rewards.py", "from .words import VALUE\n" + REWARD.format(value="VALUE"))

    assert reward_function.load_reward_function("steps.inner.rewards:reward")(*ARGUMENTS) == [5.0]

    write(folder, "steps/inner/rewards.py", REWARD.format(value=6))
    assert reward_function.load_reward_function("steps.inner.rewards:reward")(*ARGUMENTS) == [6.0]


def test_an_edit_with_equal_size_and_time_is_detected(folder):
    import os

    path = write(folder, "own_same.py", REWARD.format(value=1))
    stat = path.stat()
    assert reward_function.load_reward_function("own_same:reward")(*ARGUMENTS) == [1.0]

    write(folder, "own_same.py", REWARD.format(value=2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert reward_function.load_reward_function("own_same:reward")(*ARGUMENTS) == [2.0]


def test_a_file_that_changed_since_the_run_started_is_refused(folder):
    write(folder, "own_changed.py", "def read(record):\n    return {'text': 'a'}\n")
    config = AlignConfig(format="own_changed:read", format_hash=user_code_config.format_hash("own_changed:read"))
    align.check_rows([("a.jsonl", 1, {})], config)

    write(folder, "own_changed.py", "def read(record):\n    return {'text': 'b'}\n")

    with pytest.raises(RecipeError, match=r"own_changed\.py changed since the run started\. Start the run again"):
        align.check_rows([("a.jsonl", 1, {})], config)


@pytest.mark.parametrize("code", ["", "0", "1", "'why'"])
def test_sys_exit_is_an_error_of_the_function_that_calls_it(folder, code):
    write(folder, "own_exit.py", f"import sys\n\ndef reward(prompts, completions, references):\n    sys.exit({code})\n")

    message = error_of("own_exit:reward")

    assert "train.reward_function 'own_exit:reward' failed: called sys.exit(" in message
    assert "own_exit.py:4)" in message
    assert "\n" not in message


def test_sys_exit_while_importing_is_an_error_of_the_module(folder):
    write(folder, "own_exit.py", "import sys\nsys.exit(0)\n")

    assert "importing" in error_of("own_exit:reward")
    assert "failed: called sys.exit(0)" in error_of("own_exit:reward")
    assert "own_exit.py:2)" in error_of("own_exit:reward")


def test_sys_exit_in_a_format_ends_the_run_with_an_error(folder):
    write(folder, "own_exit.py", "def read(record):\n    raise SystemExit\n")

    with pytest.raises(RecipeError, match=r"'own_exit:read': called sys\.exit\(None\) .*own_exit\.py:2"):
        align.align_record({"q": "x"}, "own_exit:read")


def test_a_generator_that_exits_while_it_is_read_is_an_error(folder):
    write(
        folder, "own_exit.py", "def reward(prompts, completions, references):\n    yield 1\n    raise SystemExit(0)\n"
    )

    assert "failed: called sys.exit(0)" in error_of("own_exit:reward")


@pytest.mark.parametrize("where", ["import", "call"])
def test_a_keyboard_interrupt_in_user_code_is_not_converted(folder, where):
    body = "raise KeyboardInterrupt" if where == "call" else "pass"
    top = "" if where == "call" else "raise KeyboardInterrupt\n"
    write(folder, "own_stop.py", f"{top}def reward(prompts, completions, references):\n    {body}\n")

    with pytest.raises(KeyboardInterrupt):
        reward_function.load_reward_function("own_stop:reward")(*ARGUMENTS)


def test_an_error_contains_the_line_of_the_user_file(folder):
    write(folder, "own_lines.py", "import json\n\ndef read(record):\n    return json.loads(record['q'])\n")

    with pytest.raises(DataError, match=r"own_lines:read failed: JSONDecodeError: .*own_lines\.py:4\)"):
        align.align_record({"q": "{"}, "own_lines:read")

    write(folder, "own_syntax.py", "def reward(:\n    pass\n")
    assert "own_syntax.py:1)" in error_of("own_syntax:reward")


def test_an_installed_module_is_imported_under_its_name(folder):
    function = user_code.load_function("tuneline.data.rewards:exact", "key")

    from tuneline.data import rewards

    assert function is rewards.exact


def test_a_module_that_exits_does_not_end_the_process_with_code_0(folder):
    write(folder, "own_exit.py", "import sys\nsys.exit(0)\n")
    code = "from tuneline.data import reward_function; reward_function.load_reward_function('own_exit:reward')"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)

    assert run.returncode == 1
    assert "RecipeError" in run.stderr
