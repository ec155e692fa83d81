"""A file of `configs/sweep` as a W&B sweep: agents of wandb train, and W&B gets the same figure."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tasks.run.presets import CONFIGS
from tasks.run.safe_loading import read_checkpoint
from tests.loopback import PATIENCE, wandb_server

WANDB = str(Path(sys.executable).with_name("wandb"))
SPACE = CONFIGS / "sweep" / "dropout.yaml"
RATE = "model.reg.head_dropout"
TINY = {
    "model.arch": "mlp",
    "model.width": 8,
    "model.depth": 1,
    "model.optim.lr": 0.2,
    "trainer.max_epochs": 4,
    "trainer.accelerator": "cpu",
}


def test_an_agent_optimizes_what_make_sweep_does(tmp_path: Path, caches: Path) -> None:
    metric = yaml.safe_load(SPACE.read_text())["metric"]
    with wandb_server() as server:
        settings = {
            "TASK": "vision",
            "REG": "none",
            "DATA": "builtin",
            "SEED": "0",
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            **{name: str(tmp_path) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")},
            # As in an activated environment.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WANDB_ENTITY": "team",
            **{f"WANDB_{name}_TIMEOUT": PATIENCE for name in ("INIT", "HTTP", "FINISH")},
            "OMP_NUM_THREADS": "1",
        }

        def run(*command: str) -> str:
            done = subprocess.run(
                [WANDB, *command],
                env={**os.environ, **settings},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, done.stdout
            return done.stdout

        run("sweep", "--project", "regain", str(SPACE))
        [sweep] = server.sweeps.values()
        fixed = {**TINY, "data.cache_dir": str(caches)}
        sweep.waiting = [{RATE: rate, **fixed} for rate in (0.0, 0.6)]
        said = run("agent", f"team/regain/{sweep.name}")
        assert set(sweep.runs) <= set(server.runs), said
        runs = [server.runs[name] for name in sweep.runs]
        assert [one.state for one in runs] == ["finished"] * 2, said
    # The search is over the parameters under which W&B has them.
    assert [one.config[RATE] for one in runs] == [0.0, 0.6]
    assert [one.config["model"]["reg"]["head_dropout"] for one in runs] == [0.0, 0.6]
    assert {one.sweep for one in runs} == {sweep.name}
    saved = [read_checkpoint(file) for file in sorted(Path().glob("runs/*/*/last.ckpt"))]
    histories = [checkpoint["results"]["history"] for checkpoint in saved]
    best = [max(epoch["val/acc"] for epoch in history) for history in histories]
    assert len(best) == 2
    # The best epoch is not the last one.
    assert any(history[-1]["val/acc"] < top for history, top in zip(histories, best, strict=True))
    assert [one.summary[metric["name"]] for one in runs] == best
    assert [
        max(row[metric["name"]] for row in one.history if metric["name"] in row) for one in runs
    ] == best
    assert (metric["goal"], [one.summary["best"]["val/acc"] for one in runs]) == ("maximize", best)
