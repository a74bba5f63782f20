"""Packing a checkpoint, starting on what was packed, and answering: times and peaks of memory.

usage: python bench/memory.py CHECKPOINT [--bits 8,4] [--picture FILE] [--tokens 8] [--cold] [--busy] [--folder DIR] [--keep]

For each width three processes: `foveal pack`; `foveal ask` with no picture and one token, which is how long it takes to start;
`foveal ask` about a picture, by default the 640x480 one of bench/peers.py. Each one's peak is what the system counted for it,
mapped pages included. Start is the time of a process from its first instruction to its last, without what it says its answer
took; --busy leaves times out, for a machine that does other things as well. --cold empties the page cache before each process,
for which one must be root. Packed folders are written under --folder and removed. Prints a table and, last, one JSON line;
--keep writes bench/results/DATE-memory-NAME.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
QUESTION = "What is in this picture, please?"


def run(*words: str, cold: bool) -> dict[str, Any]:
    """Run a Python process; return what it printed, its seconds, and its peak in bytes. This process must stay small: a
    child's peak begins at its parent's."""
    if cold:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert child.stdout is not None
    said = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return {"said": said, "seconds": round(time.perf_counter() - began, 2), "peak_bytes": usage.ru_maxrss * 1024}


def examine(checkpoint: Path, bits: int, picture: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    packed = folder / f"{checkpoint.name}-{bits}"
    foveal = ("-m", "foveal")
    pack = run(*foveal, "pack", str(packed), "-m", str(checkpoint), "--bits", str(bits), cold=args.cold)
    size = sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    asks = []
    for files, tokens in (((), 1), ((str(picture),), args.tokens)):
        words = ("ask", *files, QUESTION, "-m", str(packed), "--json", "--max-tokens", str(tokens))
        asked = run(*foveal, *words, cold=args.cold)
        answer = json.loads(asked.pop("said"))
        times = {name: round(value, 3) for name, value in answer["timings"].items()}
        own = sum(times[name] for name in ("prepare_s", "encode_s", "prefill_s", "decode_s"))
        usage = {"prompt_tokens": answer["usage"]["prompt_tokens"], "new_tokens": answer["usage"]["completion_tokens"]}
        asks.append({**asked, **usage, **times, "start_s": round(asked["seconds"] - own, 2)})
    shutil.rmtree(packed)
    del pack["said"]
    if args.busy:
        for part in (pack, *asks):
            for name in [name for name in part if name == "seconds" or name.endswith("_s")]:
                del part[name]
    row = {"packed_bytes": size, "pack": pack, "start": asks[0], "picture": asks[1]}
    share = pack["peak_bytes"] / size
    print(f"{bits} bits: {size / 1e9:.2f} GB; peak of packing {pack['peak_bytes'] / 1e9:.2f} GB, {share:.2f} of it;", end=" ")
    print(f"of an answer about a picture {asks[1]['peak_bytes'] / 1e9:.2f} GB", flush=True)
    if not args.busy:
        print(f"  packing {pack['seconds']:.1f} s, start {asks[0]['start_s']:.2f} s, first token after", end=" ")
        print(f"{asks[1]['first_token_s']:.1f} s", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--bits", default="8,4")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--tokens", type=int, default=8, help="of the answer about the picture")
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each process")
    parser.add_argument("--busy", action="store_true", help="leave times out")
    parser.add_argument("--folder", type=Path, help="where packed folders are written for a while")
    parser.add_argument("--keep", action="store_true", help="write the result")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        picture = args.picture
        if picture is None:
            picture = Path(folder) / "picture.jpg"
            draw = "import sys; from bench.peers import photograph; open(sys.argv[1], 'wb').write(photograph())"
            run("-c", draw, str(picture), cold=False)
        for bits in map(int, args.bits.split(",")):
            rows[f"{bits} bits"] = examine(args.checkpoint, bits, picture, args, Path(folder))
    record = {
        "what": "packing, starting, answering: times and peaks", "date": datetime.date.today().isoformat(),
        "checkpoint": args.checkpoint.name, "picture": args.picture.name if args.picture else "640x480",
        "cold": args.cold, "busy": args.busy,
        "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), **rows,
    }  # fmt: skip
    if args.keep:
        (RESULTS / f"{record['date']}-memory-{args.checkpoint.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
