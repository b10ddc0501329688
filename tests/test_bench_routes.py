"""The bench of whole routes runs the program itself, and says what became of it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bench import bench_routes as module
from bench.bench_routes import decoders_busy, main


def test_the_program_is_measured(
    tmp_path: Path, tiny_weights: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_weights[0]
    main(["--videos", "2", "--repeats", "1", "--weights", weights, "--results", str(tmp_path)])
    (record,) = [json.loads(line) for line in (tmp_path / "routes_cpu.jsonl").read_text().splitlines()]
    assert (record["decoder"], record["status"], record["used"], record["videos"]) == ("cpu", "ok", ["cpu"], 2)
    assert record["clips_per_s"]["median"] > 0
    assert "cpu" in capsys.readouterr().out.splitlines()[1]


def test_a_route_that_cannot_run_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--videos", "1", "--repeats", "1", "--weights", "nothing.pth", "--results", str(tmp_path)])
    (record,) = [json.loads(line) for line in (tmp_path / "routes_cpu.jsonl").read_text().splitlines()]
    assert "weights nothing.pth" in record["status"]
    assert "weights nothing.pth" in capsys.readouterr().out


def test_busy_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '10\\n90\\n[N/A]\\n'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with decoders_busy() as busy:
        time.sleep(0.5)
    assert busy == [10.0, 90.0]
    monkeypatch.setenv("PATH", "")
    with decoders_busy() as busy:
        pass
    assert busy == []


def test_what_becomes_of_several_runs() -> None:
    run: dict[str, Any] = {"clips_per_s": 10.0, "x_realtime": 2.0, "start_s": 1.0, "failed": 0}
    run |= {"used": ["nvdec"], "busy": [0, 80, 90, 95]}
    record = module._record("nvdec", [run, {**run, "clips_per_s": 30.0}, {"error": "no luck"}])
    assert (record["status"], record["clips_per_s"]["median"], record["busy_percent"]) == ("ok", 20.0, 93.75)
    assert module._record("nvdec", [{"error": "no luck"}]) == {"decoder": "nvdec", "status": "no luck"}
    assert module._cells({"decoder": "nvdec", "status": "no luck"}) == ("nvdec", *[""] * 7, "no luck")
