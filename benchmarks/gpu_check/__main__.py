"""Run the checks, each in a process of its own, and write one file: a crash ends one check, not the others.

``python -m benchmarks.gpu_check OUT.json`` on a machine with a GPU, ``--dry`` on one without.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.check import Check, Setting, Skipped
from benchmarks.gpu_check.checks import CHECKS, TOTAL_SECONDS
from sdgpu.backend.storage import write_file

__all__ = ["main", "run_all", "run_one", "table"]

MARK = "result of the check: "
ROOT = Path(__file__).parents[2]


def run_one(check: Check, setting: Setting) -> dict[str, Any]:
    """The check in this process: its status, message and figures."""
    try:
        return {"status": "ok", "message": "", "figures": check.function()(setting)}
    except Skipped as reason:
        return {"status": "skipped", "message": str(reason), "figures": {}}
    except Exception as error:
        message = f"{type(error).__name__}: {error}".strip()
        return {
            "status": "failed",
            "message": message,
            "figures": {"trace": traceback.format_exc(limit=-8)},
        }


def run_all(
    checks: Iterable[Check], setting: Setting, out: Path, *, seconds: float = TOTAL_SECONDS
) -> list[dict[str, Any]]:
    """Every check in a process, in turn, as long as there is time; the file is written after each."""
    results: list[dict[str, Any]] = []
    start = time.monotonic()
    for check in checks:
        left = seconds - (time.monotonic() - start)
        began = time.monotonic()
        if left < 5:
            outcome = {
                "status": "skipped",
                "message": f"the {seconds:g} seconds are over",
                "figures": {},
            }
        else:
            outcome = _in_a_process(check, setting, min(check.seconds, left))
        result = {"name": check.name, **outcome, "seconds": round(time.monotonic() - began, 2)}
        results.append(result)
        print(line(result), flush=True)
        _write(out, results, setting, time.monotonic() - start)
    return results


def _in_a_process(check: Check, setting: Setting, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--one", f"{check.name}|{check.place}"]
    command += ["--dry"] if setting.dry else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a session of its own, so that what it has started ends with it
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, **how
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, errors = process.communicate()
            message = f"not done after {seconds:.0f} seconds"
            return {"status": "timeout", "message": message, "figures": {"stderr": errors[-2000:]}}
    found = [text for text in output.splitlines() if text.startswith(MARK)]
    if not found:
        message = f"the process ended with {process.returncode} and no result"
        return {"status": "crashed", "message": message, "figures": {"stderr": errors[-3000:]}}
    outcome: dict[str, Any] = json.loads(found[-1].removeprefix(MARK))
    return outcome


def _write(out: Path, results: list[dict[str, Any]], setting: Setting, seconds: float) -> None:
    whole = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": setting.device,
        "dry": setting.dry,
        "seconds": round(seconds, 1),
        "table": table(results),
        "checks": results,
    }
    write_file(out, json.dumps(whole, indent=1, default=str).encode())


def line(result: dict[str, Any]) -> str:
    """One result for people."""
    text = f"{result['status']:8} {result['seconds']:7.1f} s  {result['name']}"
    message = result["message"].splitlines()[0][:160] if result["message"] else ""
    return f"{text}: {message}" if message else text


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """All results for people, with a last line that counts them."""
    counts = dict.fromkeys(("ok", "failed", "crashed", "timeout", "skipped"), 0)
    for result in results:
        counts[result["status"]] += 1
    total = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    return [*map(line, results), total]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a check failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("out", nargs="?", default="out/gpu_check.json", help="the file of results")
    parser.add_argument("--dry", action="store_true", help="small problems on the CPU")
    parser.add_argument("--only", default="", help="checks whose names contain this")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    setting = Setting("cpu", dry=True) if given.dry else Setting()
    if given.one:
        name, _, place = given.one.partition("|")
        print(MARK + json.dumps(run_one(Check(name, place, 0), setting), default=str), flush=True)
        return 0
    if not given.dry:
        import torch

        if not torch.cuda.is_available():
            print("torch sees no CUDA device: run it where there is one, or with --dry")
            return 2
    checks = [check for check in CHECKS if given.only in check.name]
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    results = run_all(checks, setting, out)
    print(table(results)[-1])
    print(f"{out} has the figures: please send it")
    return int(any(result["status"] not in ("ok", "skipped") for result in results))


if __name__ == "__main__":
    sys.exit(main())
