"""Training under torchrun on this machine."""

from __future__ import annotations

from tests.runs import arguments, records


def test_the_run_s_own_exit_code_and_a_log_for_each_rank(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, validation__every_steps=0)[1:]
    limit = "health.time_limit_minutes=1e-6"
    done = command("launch", "local", "nproc=2", "--", *training, limit)
    assert done.returncode == 85, done.stderr
    steps = [record["step"] for record in records(run_dir)]
    assert 1 <= len(steps) < 20
    assert steps == list(range(1, len(steps) + 1))
    logs = [path.relative_to(run_dir / "logs") for path in run_dir.glob("logs/*/attempt_0/*/*.log")]
    assert {path.parts[2] for path in logs} == {"0", "1"}
    assert f"stopped after step {steps[-1]} (time limit)" in done.stdout + done.stderr


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
