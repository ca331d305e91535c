import dataclasses
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from typer.main import get_command

from bnkit.cli import app
from bnkit.cli import comparison as command
from bnkit.cli.arguments import setting_options, settings_of
from bnkit.experiments import sweep
from bnkit.experiments.initialisation import SCHEMES
from bnkit.experiments.networks import ACTIVATIONS, NETWORKS
from bnkit.experiments.settings import Settings, shown_settings
from bnkit.experiments.tasks import LOSSES
from bnkit.experiments.training import OPTIMIZERS
from cli.commands import TESTS, run

OWN = "--model users:build --data users:loaders"
BRIEF = "--steps 4 --evaluate-every 2 --seeds 1 --learning-rate 0.1"


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The folder of the report, which is not there yet; the current folder is its parent."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bnkit-report"


# What is refused


def bad(text, message, *, named=None):
    return pytest.param(text, message, id=named or text[:60])


BAD = [
    bad("--network reznet", "unknown network 'reznet': did you mean 'resnet'?"),
    bad("--data digist", "unknown data set 'digist': did you mean 'digits'?"),
    bad("--activation relu,rleu", "unknown activation 'rleu': did you mean"),
    bad("--optimizer sdg", "unknown optimizer 'sdg': did you mean 'sgd'?"),
    bad("--loss cross-entrpy", "unknown loss 'cross-entrpy': did you mean"),
    bad("--init glorto", "unknown initialisation 'glorto': did you mean 'glorot'?"),
    bad("--init normal:0", "initialisation 'normal:0' needs a positive, finite standard"),
    bad("--learning-rate 0.1,x", "'0.1,x': pass numbers with commas between them"),
    bad("--learning-rate 0.1,-1", "`learning_rates` holds -1.0: pass a positive, finite number"),
    bad("--learning-rate nan", "`learning_rates` holds nan: pass a positive, finite number"),
    bad("--learning-rate 1e999", "`learning_rates` holds inf: pass a positive, finite number"),
    bad("--learning-rate ,", "`learning_rates` is empty: pass at least one"),
    bad("--hidden 10,1.5", "'10,1.5': pass integers with commas between them"),
    bad("--hidden 10,0", "`hidden` is 0: pass an integer ≥ 1"),
    bad("--hidden ''", "nothing in this model can be normalised"),
    bad("--network vgg --hidden 5", "network 'vgg' has fixed layers, and `hidden` is (5,)"),
    bad("--network dlology", "network 'dlology' needs images of at least 18×18 pixels"),
    bad("--seeds 0", "`seeds` is 0: pass an integer ≥ 1"),
    bad("--steps -5", "`steps` is -5: pass an integer ≥ 1"),
    bad("--epochs 0", "`epochs` is 0: pass an integer ≥ 1"),
    bad("--evaluate-every 0", "`evaluate_every` is 0: pass an integer ≥ 1"),
    bad("--batch-size 0", "`batch_size` is 0: pass an integer ≥ 1"),
    bad("--batch-size 1438", "`batch_size` is 1438: choose 1 to 1437, the number of examples"),
    bad("--batch-size 1", "a training step of the batch norm network fails"),
    bad("--sweep width=1", "--sweep width=1 is for a loop of your own: give it as --train"),
    bad("--train users:build --sweep width", "--sweep is 'width': write a name and its values"),
    bad("--train users:build --sweep a=1 --sweep a=2", "--sweep names a, a: give each once"),
    bad("--log wandb", "`log` is 'wandb': pass 'tensorboard', or a writer of your own"),
    bad("--target high", "--target is 'high': pass a number, or best"),
    bad("--target 90", "`target` is 90.0: pass a number above 0 and up to 1"),
    bad("--momentum 0", "`momentum` is 0.0: pass a number above 0 and up to 1"),
    bad("--eps -1", "`eps` is -1.0: pass a positive, finite number"),
    bad("--data mnist --data-dir nowhere", "nowhere does not exist: give another as --data-dir"),
    bad("--model users", "'users' is not a reference: write it as package.module:function"),
    bad("--model nowhere_at_all:build", "module 'nowhere_at_all' cannot be imported from"),
    bad("--model users:biuld", "module 'users' has no 'biuld'; did you mean 'build'?"),
    bad("--model users:X", "'users:X' is a Tensor: it must be a function without arguments"),
    bad("--model users:cut", "`build` (cut) fails: TypeError: cut() missing 1"),
    bad("--model users:loaders", "`build` returned a tuple: it must return a torch module"),
    bad("--model users:build", "a training batch does not fit the network: the model fails on"),
    bad("--model users:build --activation relu", "--activation is for the named networks"),
    # the default, yet typed: leaving it out in silence would hide that it does nothing
    bad("--model users:build --activation sigmoid,relu", "--activation is for the named networks"),
    bad("--model users:build --network mlp", "--network is for the named networks"),
    bad("--model users:build --hidden 5", "`hidden` is (5,), and `build` is your own"),
    bad(f"{OWN} --batch-size 5", "`batch_size` is 5, and `data` is your own, which decides that"),
    bad("--data users:loaders", "`build` is the name 'mlp' and `data` is your own"),
    bad("--model users:build --data users:build", "`data` returned a Sequential: it must return"),
    bad("--model users:build --data users:cut", "`data` (cut) fails: TypeError: cut() missing 1"),
    bad("--model broken:build", "'broken': name 'undefined' is not defined", named="on import"),
    bad("--model broken:build", "cannot be imported from", named="where it was looked for"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_wrong_use_is_answered_in_one_sentence_and_leaves_no_file(out, monkeypatch, text, message):
    monkeypatch.syspath_prepend(TESTS)
    (out.parent / "broken.py").write_text("undefined")
    code, stdout, stderr = run(f"compare {text}")
    assert code == 2
    assert stdout == ""
    assert message.replace("'broken': ", "") in stderr
    assert stderr.startswith("Error: ")
    assert len(stderr.strip().splitlines()) == 1
    assert "Traceback" not in stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compare --jobs 0", "Invalid value for '--jobs'"),  # the rest is the parser's
        ("compare --steps x", "Invalid value for '--steps'"),
        (
            "compare --placement inside",
            "unknown placement 'inside': choose from after, after_activ",
        ),
        ("compare --lerning-rate 1", "No such option: --lerning-rate"),
        ("compair", "No such command 'compair'"),
    ],
)
def test_what_the_parser_refuses_has_exit_code_two_and_leaves_no_file(out, text, message):
    code, stdout, stderr = run(text)
    assert (code, stdout) == (2, "")
    assert message in " ".join(re.sub("[│╭╰─╮╯]", " ", stderr).split())
    assert not out.exists()


def test_data_that_are_not_the_published_files_are_refused(out):
    folder = out.parent / "mnist"
    folder.mkdir()
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        kind = "idx3" if "images" in name else "idx1"
        (folder / f"{name}-{kind}-ubyte.gz").write_bytes(b"\x1f\x8b cut short")
    code, _, stderr = run("compare --data mnist --data-dir .")
    assert code == 2
    assert re.match(r"Error: .*train-images-idx3-ubyte.gz is cut short or damaged", stderr)
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(out, monkeypatch):
    monkeypatch.syspath_prepend(TESTS)
    (out.parent / "file").touch()
    code, _, stderr = run(f"compare {OWN} {BRIEF} --out file/report")
    assert code == 2
    assert re.match(r"Error: the .* (\(Not a directory\)).*: choose another", stderr)
    assert len(stderr.strip().splitlines()) == 1


@pytest.fixture
def read_only(monkeypatch):
    """What makes a report fail in every folder whose name begins with a text."""
    write = command.write_report

    def refuse(beginning):
        def write_or_fail(found, folder):
            if Path(folder).name.startswith(beginning):
                raise OSError(errno.EROFS, "Read-only file system")
            return write(found, folder)

        monkeypatch.setattr(command, "write_report", write_or_fail)

    return refuse


def test_what_is_kept_in_a_folder_that_cannot_be_written_is_reported_elsewhere(
    out, monkeypatch, read_only
):
    monkeypatch.syspath_prepend(TESTS)
    code, table, _ = run(f"compare {OWN} {BRIEF}")
    assert code == 0
    read_only("bnkit-report")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(out.parent / f"x-{prefix}"))
    code, stdout, stderr = run(f"compare {OWN} {BRIEF} --report-only")
    assert (code, stdout) == (0, table)
    assert "bnkit-report cannot be written (Read-only file system), so the report is" in stderr
    assert "Report:" in stderr
    assert (out.parent / "x-bnkit-report-" / "report.html").exists()
    read_only("")
    code, stdout, stderr = run(f"compare {OWN} {BRIEF} --report-only")
    assert (code, stdout) == (2, table)
    assert re.match(r"Error: the report is lost: bnkit-report cannot be written .*, nor", stderr)


@pytest.mark.parametrize("folder", ["none_there", "file/report", "empty"])
def test_a_report_of_no_results_is_refused_and_writes_nothing(out, monkeypatch, folder):
    monkeypatch.syspath_prepend(TESTS)
    (out.parent / "file").touch()
    (out.parent / "empty").mkdir()
    code, stdout, stderr = run(f"compare {OWN} {BRIEF} --out {folder} --report-only")
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"Error: {folder} holds no result of this comparison, so there is")
    assert len(stderr.strip().splitlines()) == 1
    assert [path.name for path in out.parent.iterdir()] == ["file", "empty"]
    assert [*(out.parent / "empty").iterdir()] == []


# What is said on request


def test_every_setting_has_an_option():
    options = {option.name: option for option in get_command(app).commands["compare"].params}
    assert list(shown_settings()) == [field.name for field in dataclasses.fields(Settings)]
    for name, shown in shown_settings().items():
        assert options[name].help == shown.help
        assert options[name].rich_help_panel == shown.panel


def test_without_options_the_settings_are_the_defaults():
    assert settings_of({each.name: each.default for each in setting_options()}) == Settings()


BEGUN = (
    "--network log --data dig --optimizer mom --loss cross --schedule cos --precision bf "
    "--activation sig,leaky --sides plain,gr --init glo --metric acc"
)
WHOLE = (
    "--network logistic --data digits --optimizer momentum --loss cross-entropy --schedule cosine "
    "--precision bfloat16 --activation sigmoid,leaky-relu --sides plain,group --init glorot "
    "--metric accuracy"
)


def test_the_beginning_of_a_name_is_the_name_so_results_have_the_same_key(monkeypatch):
    asked = []

    def plan(network, data, *, settings, **_):
        asked.append((network, data, settings))
        raise ValueError("that will do")

    monkeypatch.setattr(command, "plan_comparison", plan)
    run(f"compare {BEGUN}")
    run(f"compare {WHOLE}")
    assert asked[0] == asked[1]
    assert asked[0][:2] == ("logistic", "digits")


@pytest.mark.usefixtures("out")
def test_what_is_the_beginning_of_several_names_is_answered_with_them():
    code, _, stderr = run("compare --optimizer ada")
    assert code == 2
    assert "unknown optimizer 'ada': did you mean 'adam' or 'adamw'? Choose from" in stderr
    assert run("compare --optimizer adam --steps 0")[2].count("optimizer") == 0  # it is a name


def test_switches_are_named_by_what_they_change():
    options = {option.name: option for option in get_command(app).commands["compare"].params}
    shuffle, also = options["shuffle"], options["training_mode_accuracy"]
    assert (shuffle.opts, shuffle.secondary_opts) == (["--shuffle"], ["--no-shuffle"])
    assert (also.opts, also.secondary_opts) == (["--training-mode-accuracy"], [])
    better = options["higher_is_better"]
    assert (better.opts, better.secondary_opts) == (
        ["--higher-is-better"],
        ["--lower-is-better"],
    )
    assert options["learning_rates"].opts == ["--learning-rate"]


def test_help_names_all_that_can_be_chosen():
    options = {
        parameter.name: parameter for parameter in get_command(app).commands["compare"].params
    }
    for option, table in [
        ("network", NETWORKS),
        ("activations", ACTIVATIONS),
        ("optimizer", OPTIMIZERS),
        ("loss", LOSSES),
        ("init", SCHEMES),
        ("data", ["digits", "mnist", "fashion-mnist"]),
    ]:
        named = re.findall(r"[\w:-]+", options[option].help)
        assert set(table) <= set(named), option


# What comes out


@pytest.fixture
def in_this_process(monkeypatch):
    """Run trials here and now, and draw no charts; both have their own tests."""

    def trials_here(trials, store, *, on_result, **_options):
        results = {trial.key: trial.run() for trial in trials}
        for result in results.values():
            store.save(result)
            on_result(result)
        return results

    def page(_comparison, folder):
        folder.mkdir(exist_ok=True)
        return folder / "report.html"

    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setattr(sweep, "run_trials", trials_here)
    monkeypatch.setattr(command, "write_report", page)


@pytest.mark.usefixtures("in_this_process")
def test_a_comparison_ends_with_a_table_a_verdict_and_the_path_of_the_report(out):
    code, stdout, stderr = run(f"compare {OWN} {BRIEF}")
    assert code == 0
    assert "as built" in stdout
    assert "A training step takes" in stdout
    assert f"Report: {out.name}/report.html" in stderr
    assert len(list((out / "trials").glob("*.json"))) == 2


@pytest.mark.usefixtures("in_this_process")
def test_a_loop_of_ones_own_its_sweep_and_where_its_numbers_go(out):
    (out.parent / "looped.py").write_text(
        "import users\n"
        "def train(model, trial):\n"
        "    for step in (1, 2):\n"
        "        score = model(users.X).sum() * trial.settings['times']\n"
        "        if trial.report(step, score=score):\n"
        "            return\n"
        "def log(numbers, step):\n"
        "    print(step, *numbers)\n"
    )
    own = "--model users:build --train looped:train --metric score --higher-is-better"
    swept = "--sweep times=1,2 --learning-rate 0.1 --seeds 1 --log looped:log --json"
    code, stdout, stderr = run(f"compare {own} {swept}")
    assert code == 0
    settings = {trial["activation"] for trial in json.loads(stdout)["trials"]}
    assert settings == {"times=1", "times=2"}
    assert "2 score/batch-norm/times-2/learning-rate-0.1/seed-0" in stderr


@pytest.mark.usefixtures("in_this_process")
def test_json_alone_is_on_stdout_whatever_peoples_code_prints(out, capfd):
    (out.parent / "talkative.py").write_text(
        "import os, users\nprint('imported')\n"
        "def build():\n    print('building')\n    os.system('echo below')\n"
        "    return users.build()\n"
    )
    own = "--model talkative:build --data users:loaders"
    code, stdout, stderr = run(f"compare {own} {BRIEF} --json")
    assert code == 0
    document = json.loads(stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [trial["outcome"] for trial in document["trials"]] == ["finished"] * 2
    assert document["settings"]["network"] == "talkative:build"
    assert document["command"].startswith("bnkit")
    below = capfd.readouterr()
    assert "building" in stderr
    assert ("below" in below.err, below.out) == (True, "")


@pytest.mark.usefixtures("in_this_process")
def test_report_only_reports_what_is_there_and_runs_nothing(out):
    assert run(f"compare {OWN} {BRIEF} --report-only --json")[0] == 2
    assert not out.exists()
    run(f"compare {OWN} {BRIEF}")
    twice = BRIEF.replace("--seeds 1", "--seeds 2")
    some = json.loads(run(f"compare {OWN} {twice} --report-only --json")[1])
    assert sorted(t["outcome"] for t in some["trials"]) == ["finished"] * 2 + ["not run"] * 2
    all_of_them = json.loads(run(f"compare {OWN} {BRIEF} --report-only --json")[1])
    assert [t["outcome"] for t in all_of_them["trials"]] == ["finished"] * 2


@pytest.mark.usefixtures("in_this_process")
def test_runs_that_failed_are_counted_and_change_the_exit_code(out, monkeypatch):
    (out.parent / "unlucky.py").write_text(
        "import torch, users\n"
        "class Net(torch.nn.Sequential):\n"
        "    def forward(self, input):\n"
        "        self.seen += self.training\n"
        "        if self.seen == 3: raise RuntimeError('out of luck')\n"
        "        return super().forward(input)\n"
        "def build():\n    net = Net(*users.build())\n    net.seen = 0\n    return net\n"
    )
    monkeypatch.syspath_prepend(out.parent)
    code, stdout, _ = run(f"compare --model unlucky:build --data users:loaders {BRIEF}")
    sys.modules.pop("unlucky")
    assert code == 1
    assert "2 runs failed: RuntimeError: out of luck" in stdout


@pytest.mark.usefixtures("in_this_process", "out")
@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--executor spark", "the executor 'spark' is not known: pass dask://host:port, ray,"),
        ("--executor-option num_gpus=1", "--executor-option num_gpus=1 is for --executor"),
        ("--executor ray --executor-option gpus", "'gpus': write it as NAME=VALUE"),
        ("--trial-timeout 0", "`trial_timeout` is 0.0: pass a positive, finite number"),
    ],
)
def test_an_engine_that_is_not_there_is_refused_in_a_sentence(typed, sentence):
    code, _, stderr = run(f"compare {OWN} {BRIEF} {typed}")
    assert code == 2
    assert sentence in " ".join(stderr.split())


def test_ctrl_c_prints_what_had_finished_and_the_command_that_goes_on(out, monkeypatch):
    def interrupted(trials, store, **_options):
        store.save(trials[0].run())
        raise KeyboardInterrupt

    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setattr(sweep, "run_trials", interrupted)
    monkeypatch.setattr(sys, "argv", ["/path/to/bnkit", "compare", "--out", "two words"])
    code, stdout, stderr = run(f"compare {OWN} {BRIEF} --out 'two words'")
    assert code == 130
    assert "as built" in stdout
    assert "Interrupted. Run the same command to resume:  bnkit compare --out 'two words'" in stderr
    assert len(list((out.parent / "two words" / "trials").glob("*.json"))) == 1


def test_ctrl_c_before_the_first_trial_ends_without_a_traceback(out, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "plan_comparison", interrupted)
    code, stdout, stderr = run("compare")
    assert (code, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert not out.exists()


# The program itself, as a process of its own

PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from bnkit.cli import main; main()"
)
MINE = """
import users
print("imported")
def build():
    print("building")
    return users.build_with_dropout()
def loaders():
    return users.stuck_at_the_second_seed()
"""
SWEEP = "--model mine:build --data mine:loaders --learning-rate 0.1 --seeds 2 --steps 12 --jobs 2"


@pytest.fixture
def start(tmp_path):
    """Return what begins a comparison of code in the current folder, in a session of its own."""
    programs = []
    (tmp_path / "mine.py").write_text(MINE)

    def begin(*more):
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "compare", *shlex.split(SWEEP), *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(program)
        return program

    yield begin
    for program in programs:
        program.kill()
        program.communicate()


def workers(program):
    """Return the processes of the program's session that run trials."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,stat=,args=", "-s", str(program.pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    alive = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [pid for pid, state, args in alive if "popen_loky" in args and "Z" not in state]


def until(condition, *, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def kept(folder):
    files = folder.glob("bnkit-report/trials/*.json")
    found = (json.loads(path.read_text())["result"] for path in files)
    return {result["key"]: {**result, "seconds": 0} for result in found}


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C, which a terminal sends to all processes"),
        pytest.param(signal.SIGINT, False, id="SIGINT"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM"),
    ],
)
def test_an_interruption_ends_all_processes_and_shows_what_had_finished(
    tmp_path, start, number, whole_group
):
    program = start()
    assert until(lambda: len(kept(tmp_path)) == 2 and len(workers(program)) == 2, seconds=60)
    (os.killpg if whole_group else os.kill)(program.pid, number)
    assert until(lambda: workers(program) == [], seconds=10)  # two on a quiet machine
    stdout, stderr = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "as built" in stdout
    assert f"Interrupted. Run the same command to resume:  bnkit compare {SWEEP}" in stderr
    assert "Traceback" not in stderr
    assert len(kept(tmp_path)) == 2


def test_a_killed_comparison_goes_on_and_ends_with_the_same_numbers(tmp_path, start, monkeypatch):
    program = start()
    assert until(lambda: len(kept(tmp_path)) == 2 and len(workers(program)) == 2, seconds=60)
    program.kill()
    assert until(lambda: workers(program) == [], seconds=10)  # two on a quiet machine
    program.communicate(timeout=60)
    before = kept(tmp_path)

    (tmp_path / "go").touch()
    program = start("--json")
    stdout, stderr = program.communicate(timeout=120)
    assert program.returncode == 0, stderr
    document = json.loads(stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "building" in stderr  # also in the workers, whose stdout is the program's
    assert (tmp_path / "bnkit-report" / "report.html").is_file()
    assert all(kept(tmp_path)[key] == result for key, result in before.items())

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(TESTS)
    import mine  # noqa: PLC0415  it has just been written

    settings = Settings(learning_rates=[0.1], seeds=2, steps=12)
    sweep = command.plan_comparison(mine.build, mine.loaders, settings=settings, out="unused")
    sys.modules.pop("mine")
    undisturbed = [{**trial.run().to_json(), "seconds": 0} for trial in sweep.trials]
    assert json.loads(json.dumps(undisturbed)) == [
        {**trial, "seconds": 0} for trial in document["trials"]
    ]


@pytest.mark.usefixtures("in_this_process")
def test_a_report_that_memory_is_too_short_for_is_drawn_later(out, monkeypatch):
    def dies(*_):
        raise ChildProcessError("out/report.html is not written: memory is short")

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_report", dies)
        code, stdout, stderr = run(f"compare {OWN} {BRIEF}")
    assert code == 2
    assert "plain → batch norm" in stdout
    assert stderr.splitlines()[-1] == (
        f"Error: out/report.html is not written: memory is short. The results in {out.name} are "
        f"kept: allow more memory, and run the same command with --report-only"
    )
    assert run(f"compare {OWN} {BRIEF} --report-only")[0] == 0
