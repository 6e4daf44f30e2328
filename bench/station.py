"""Load and faults of a station, a table: what was done, what was expected, what was found.

    python bench/station.py [--only NAME]... [--records 200000] [--minutes 30] [--kills 50] [--bundle BUNDLE]

A real `threecad serve` with an ONNX bundle of a small PaDiM on drawn parts is put under load, killed, and has its disk,
its files and its clock spoilt. Disks are full and read-only inside a mount namespace of their own, for which Linux and
root are needed. Exits with 1 where something was not as expected.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from station_load import fill, malformed, sustainable_rate
from station_service import Answered, Service, drawn
from threecad.station.line import Limits
from threecad.station.models import Models
from threecad.station.serving import open_line
from threecad.station.store import connect, now, store_faults

QUEUE_MS = 200


class Finding(NamedTuple):
    """A row of the table."""

    expected: str
    found: str
    is_as_expected: bool


class Bench:
    """One bundle, and a fresh folder for each fault."""

    def __init__(self, bundle: Path, folder: Path, arguments: argparse.Namespace) -> None:
        self.bundle, self.folder, self.arguments = bundle, folder, arguments

    def serve(self, store: Path, **more: object) -> Service:
        return Service(self.bundle, store, **more)  # type: ignore[arg-type]

    def queue_pages_of_a_large_store(self) -> Finding:
        store, count = self.folder / "large", self.arguments.records
        fill(store, self.bundle.name, count)
        began = time.monotonic()
        with self.serve(store) as service:
            start_s = time.monotonic() - began
            median_ms, slowest_ms = {}, {}
            for page in ("/", "/v1/parts?queue=true&limit=200", "/v1/parts?queue=true&lot=L7", "/health", "/metrics"):
                times = [service.get(page).ms for _ in range(21)]
                median_ms[page], slowest_ms[page] = statistics.median(times), max(times)
        said = "; ".join(f"`{page}` {median_ms[page]:.0f} ms, slowest {slowest_ms[page]:.0f}" for page in median_ms)
        queue = [median_ms[page] for page in median_ms if page == "/" or "queue" in page]
        began = time.monotonic()
        faults = store_faults(store)[2]
        checked_s = time.monotonic() - began
        return Finding(
            f"queue page < {QUEUE_MS} ms",
            f"{count:,} records: {said}. Up after {start_s:.1f} s; `audit verify` took {checked_s:.1f} s, "
            f"{len(faults)} faults",
            max(queue) < QUEUE_MS and not faults,
        )

    def kills_under_load(self) -> Finding:
        store, rng, told, sent = self.folder / "killed", random.Random(0), dict[str, Answered](), 0
        for _ in range(self.arguments.kills):
            service = self.serve(store)
            stop = threading.Event()

            def load(worker: int, service: Service = service, stop: threading.Event = stop) -> None:
                nonlocal sent
                number = 0
                while not stop.is_set():
                    part = f"{service.process.pid}-{worker}-{number}"
                    sent, number = sent + 1, number + 1
                    try:
                        answered = service.inspect(drawn(number % 40), part)
                    except OSError:
                        return
                    if answered.status == 200:
                        told[part] = answered

            workers = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
            for worker in workers:
                worker.start()
            time.sleep(rng.uniform(0.05, 1.5))
            service.process.kill()
            stop.set()
            for worker in workers:
                worker.join()
            service.process.wait()
        with self.serve(store):
            pass  # what was left is recorded at the start
        with closing(connect(store, read_only=True)) as database:
            accepted = database.execute("SELECT count(*) FROM parts").fetchone()[0]
            unfinished = database.execute("SELECT count(*) FROM parts WHERE seq IS NULL").fetchone()[0]
            doubled = database.execute(
                "SELECT count(*) FROM (SELECT part FROM chain WHERE kind = 'result' GROUP BY part HAVING count(*) > 1)"
            ).fetchone()[0]
            doubled += database.execute(
                "SELECT count(*) FROM (SELECT part FROM parts GROUP BY part HAVING count(*) > 1)"
            ).fetchone()[0]
            records = dict(database.execute("SELECT parts.part, hash FROM parts JOIN chain USING (seq)").fetchall())
        lost = [part for part, answered in told.items() if records.get(part) != answered.said["record"]["hash"]]
        faults = store_faults(store)[2]
        return Finding(
            "nothing answered is lost, nothing doubled, every accepted part has one record, the chain verifies",
            f"{self.arguments.kills} kills: {sent} parts sent, {accepted} accepted, {len(told)} answered, "
            f"{accepted - len(told)} more have a record; {len(lost)} lost, {doubled} doubled, "
            f"{unfinished} without record, {len(faults)} faults of the chain",
            not (lost or doubled or unfinished or faults),
        )

    def overload(self) -> Finding:
        minutes = self.arguments.minutes
        with self.serve(self.folder / "overload") as service:
            rate = sustainable_rate(service, 10)
            time.sleep(1)
            start_mb, answers = service.memory_mb, Counter[str]()
            deadline, number = time.monotonic() + 60 * minutes, 0
            half_mb = None
            with ThreadPoolExecutor(48) as pool:
                due, slots = time.monotonic(), threading.BoundedSemaphore(48)

                def send(index: int) -> None:
                    try:
                        answered = service.inspect(drawn(index % 40), str(index))
                        answers[f"{answered.status}" if answered.status != 200 else str(answered.said["verdict"])] += 1
                    except OSError as error:
                        answers[type(error).__name__] += 1
                    finally:
                        slots.release()

                while time.monotonic() < deadline:
                    slots.acquire()
                    pool.submit(send, number)
                    number += 1
                    due += 1 / (2 * rate)
                    if half_mb is None and time.monotonic() > deadline - 30 * minutes:
                        half_mb = service.memory_mb
                    time.sleep(max(0.0, due - time.monotonic()))
            end_mb = service.memory_mb
        known = sum(answers[word] for word in ("OK", "REVIEW", "NG", "429"))
        offered = number / (60 * minutes)
        said = ", ".join(f"{count} {word}" for word, count in sorted(answers.items()))
        return Finding(
            "every part answered by a verdict or 429, memory stays",
            f"sustainable {rate:.1f} parts/s, offered {offered:.1f} for {minutes:g} min: {number} sent, {said}; memory "
            f"{start_mb:.0f} MB at the start, {half_mb or start_mb:.0f} MB half-way, {end_mb:.0f} MB at the end",
            known == number and end_mb < 1.1 * (half_mb or start_mb) + 10,
        )

    def disk_full(self) -> Finding:
        with self.serve(self.folder / "full", disk="size=3m") as service:
            before = service.inspect(drawn(0), "before").status
            service.within("dd if=/dev/zero of=filler bs=64k 2>/dev/null; true")
            full = [service.inspect(drawn(index), "full") for index in range(1, 6)]
            pages = service.get("/").status
            service.within("rm filler")
            after = service.inspect(drawn(9), "after").status
            audit = service.within(f"'{sys.executable}' -m threecad audit verify . || true").split(";")[0]
        said = reason(full[0])
        return Finding(
            "503 with the reason while it is full, pages live, 200 once there is room",
            f"{before}, then {sorted({one.status for one in full})} ({said}), page {pages}; room again: {after}; "
            f"`audit verify`: {audit}",
            before == after == pages == 200 and {one.status for one in full} == {503} and ", 0 faults" in audit,
        )

    def store_read_only(self) -> Finding:
        with self.serve(self.folder / "read-only", disk="size=20m") as service:
            before = service.inspect(drawn(0), "before").status
            service.within("mount --bind pictures pictures && mount -o remount,ro,bind pictures")
            refused = service.inspect(drawn(1), "refused")
            service.within("umount pictures")
            after = service.inspect(drawn(1), "after").status
        start = self.serve(self.folder / "never", disk="ro,size=1m", is_expected_to_start=False)
        code, line = start.ended()
        return Finding(
            "503 with the reason; one line and exit 2 at a start",
            f"{before}, then {refused.status} ({reason(refused)}), mended: {after}; start: exit {code} ({line})",
            (before, refused.status, after, code) == (200, 503, 200, 2),
        )

    def clock_set_back(self) -> Finding:
        line = open_line([self.bundle], self.folder / "clock", Limits(), Models(), print)
        words = [line.inspect(drawn(index), f"today {index}").content["verdict"] for index in range(3)]
        import threecad.station.line as module_of_line
        import threecad.station.store as module_of_store

        module_of_line.now = module_of_store.now = lambda: f"2001{now()[4:]}"
        try:
            words += [line.inspect(drawn(index), f"back {index}").content["verdict"] for index in range(3)]
        finally:
            module_of_line.now = module_of_store.now = now
        newest = line.store.read("SELECT part FROM parts ORDER BY id DESC LIMIT 1")[0][0]
        line.close()
        line.store.close()
        faults = store_faults(self.folder / "clock")[2]
        return Finding(
            "parts keep the order in which they came, the chain verifies",
            f"clock back by years after 3 of {len(words)} parts: all have a verdict, the newest part is '{newest}', "
            f"{len(faults)} faults of the chain",
            newest == "back 2" and not faults and None not in words,
        )

    def model_file_changed(self) -> Finding:
        bundle = self.folder / "changed" / "cover"
        shutil.copytree(self.bundle, bundle)
        with Service(bundle, self.folder / "changed" / "store") as service:
            before = service.inspect(drawn(0), "before").said
            for file in bundle.glob("*.onnx*"):
                with file.open("r+b") as opened:  # the same file, not another one in its place
                    opened.seek(file.stat().st_size // 2)
                    opened.write(bytes(4096))
            after = service.inspect(drawn(0), "after").said
        code, line = Service(bundle, self.folder / "changed" / "store", is_expected_to_start=False).ended()
        return Finding(
            "the loaded model goes on unchanged; the next start refuses with one line and exit 2",
            f"score {before['score']:.4f}, after the change {after['score']:.4f}; start: exit {code} ({line})",
            before["score"] == after["score"] and code == 2,
        )

    def two_servers_on_one_store(self) -> Finding:
        with self.serve(self.folder / "shared") as service:
            code, line = self.serve(self.folder / "shared", is_expected_to_start=False).ended()
            after = service.inspect(drawn(0), "after").status
        return Finding(
            "the second says so in one line and exits with 2; the first goes on",
            f"exit {code} ({line}); the first: {after}",
            code == 2 and after == 200,
        )

    def malformed_requests(self) -> Finding:
        rng, answers = random.Random(1), Counter[str]()
        with self.serve(self.folder / "malformed") as service:
            for _ in range(1000):
                answers[service.raw(malformed(rng))] += 1
            after = service.inspect(drawn(0), "after").status
        errors = sum(count for status, count in answers.items() if status.startswith("5"))
        said = ", ".join(f"{count} × {status}" for status, count in sorted(answers.items()))
        return Finding(
            "an answer below 500 or a closed connection each; the service lives",
            f"{said}; a good part afterwards: {after}",
            not errors and after == 200,
        )


FAULTS: dict[str, tuple[str, Callable[[Bench], Finding]]] = {
    "records": ("many records in the store", Bench.queue_pages_of_a_large_store),
    "kills": ("`kill -9` at random moments under load", Bench.kills_under_load),
    "overload": ("twice the sustainable rate", Bench.overload),
    "full": ("disk full", Bench.disk_full),
    "read-only": ("store read-only", Bench.store_read_only),
    "clock": ("clock set back", Bench.clock_set_back),
    "changed": ("model file changed underneath", Bench.model_file_changed),
    "shared": ("two servers on one store", Bench.two_servers_on_one_store),
    "malformed": ("1,000 malformed requests", Bench.malformed_requests),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FAULTS)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--bundle", type=Path, help="serve this one; without, a small PaDiM is fitted and exported")
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what was done | expected | found | |\n|---|---|---|---|", flush=True)
    is_whole = True
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or small_bundle(Path(folder))
        for name in arguments.only or FAULTS:
            title, fault = FAULTS[name]
            found = fault(Bench(bundle, Path(folder), arguments))
            is_whole &= found.is_as_expected
            mark = "✓" if found.is_as_expected else "✗"
            said = found.found.replace(f"{folder}/", "")
            print(f"| {title} | {found.expected} | {said} | {mark} |", flush=True)
    sys.exit(0 if is_whole else 1)


def small_bundle(folder: Path) -> Path:
    """An ONNX bundle of a PaDiM at 64×64 px on drawn parts."""
    from threecad.demo.parts import write_parts
    from threecad.export.bundling import export_run
    from threecad.fitting import fit

    write_parts(folder / "data", train=64, good=0, defects=0, size=96)
    method = {"backbone": "embedded", "image_size": 64, "features": 40}
    fit("padim", folder / "data", folder / "run", settings={"method": method, "training": {"precision": "float32"}})
    export_run(folder / "run", folder / "cover", "onnx", data=folder / "data")
    return folder / "cover"


def reason(refused: Answered) -> str:
    """Why a picture could not be written, without its name of 64 letters."""
    return str(refused.said.get("detail", "")).partition(": ")[2]


def processor() -> str:
    """Its name."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
