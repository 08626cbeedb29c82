"""Training under torchrun on this machine."""

from __future__ import annotations

from tests.runs import arguments, records


def test_the_run_s_own_exit_code_and_a_log_for_each_rank(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, validation__every_steps=0)[1:]
    code = {"health.time_limit_minutes=1e-6": 85, "stop_after=3": 0}
    for change, expected in code.items():
        done = command("launch", "local", "nproc=2", "--", *training, change)
        assert done.returncode == expected, done.stderr
    assert [record["step"] for record in records(run_dir)] == [1, 2, 3]
    logs = [path.relative_to(run_dir / "logs") for path in run_dir.glob("logs/*/attempt_0/*/*.log")]
    assert {path.parts[2] for path in logs} == {"0", "1"}
    assert "step 3" in done.stdout + done.stderr or "3/" in done.stdout + done.stderr


def test_a_bad_override_is_refused_in_one_sentence(command):
    done = command("launch", "local", "nproc=2", "--", "optim.learning_rat=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "learning_rat" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_dry_run_prints_the_command(command, corpus):
    training = ("model=small_50m", f"data.folder={corpus.folder}", "data.max_epochs=9")
    done = command("launch", "local", "nproc=4", "dry_run=true", "--", *training)
    assert done.returncode == 0, done.stderr
    assert "--nproc-per-node 4" in done.stdout
    assert done.stdout.strip().endswith(f"-m pretrain {' '.join(training)}")
