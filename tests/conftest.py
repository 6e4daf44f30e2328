"""Fixtures that several test files share: a tiny image set on disk, and a cache of one's own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threecad.engines import Engine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a job that a shell runs in the background; the commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

HEIGHT, WIDTH = 48, 64


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-bf16", action="store_true", help="run the tests as on a machine without native bf16")


@pytest.fixture(scope="session", autouse=True)
def native_bf16(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the machine has, or, with `--without-bf16`, none. Processes that a test starts still see the machine."""
    with pytest.MonkeyPatch.context() as patched:
        if request.config.getoption("--without-bf16"):
            patched.setattr("threecad.devices.has_native_bf16", lambda device: False)
        yield


def plate(seed: int) -> np.ndarray:
    """A good part, (48, 64, 3) uint8: a grey plate with a bright rim, no two alike by a little noise."""
    noise = np.random.default_rng(seed).normal(0, 4, (HEIGHT, WIDTH, 3))
    shade = np.linspace(90, 140, WIDTH)[None, :, None] + np.zeros((HEIGHT, WIDTH, 3))
    shade[:4] = shade[-4:] = 200
    return np.clip(shade + noise, 0, 255).astype(np.uint8)


def scratch(seed: int) -> np.ndarray:
    """Mask (48, 64) uint8 of 0 and 255: one dark stroke across the plate, 3 px wide."""
    start, slope = 10 + 5 * (seed % 4), 0.3 if seed % 2 else -0.1
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    stroke = (np.abs(rows - start - slope * (columns - 10)) < 1.5) & (columns >= 10) & (columns < 50)
    return (stroke * 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A data root with one category `plate`: 12 train/good, 4 test/good, 4 test/scratch with masks, 48×64 px."""
    return plant(tmp_path / "data")


def plant(root: Path) -> Path:
    """Write the data root of `tree`."""
    category = root / "plate"
    for number in range(12):
        save(category / "train" / "good" / f"{number:03d}.png", plate(number))
    for number in range(4):
        save(category / "test" / "good" / f"{number:03d}.png", plate(100 + number))
        mask = scratch(number)
        part = plate(200 + number)
        part[mask > 0] //= 4
        save(category / "test" / "scratch" / f"{number:03d}.png", part)
        save(category / "ground_truth" / "scratch" / f"{number:03d}.png", mask)
    return root


@pytest.fixture(scope="session")
def common_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of `tree`, for tests that only read it."""
    return plant(tmp_path_factory.mktemp("common"))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny PaDiM, fitted on `plate` of `tree` with a quarter of the good parts kept aside."""
    from threecad.fitting import fit

    root = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("THREECAD_CACHE", str(root / "cache"))
        method = {"backbone": "resnet10t.c3_in1k", "weights": "random", "image_size": 64, "features": 12}
        settings = {"method": method, "data": {"holdout": 0.5}, "training": {"precision": "float32"}}
        fit("padim", plant(root / "data"), root / "run", settings=settings)
    return root / "run"


def need_backends() -> None:
    """Skips the test where what makes and runs bundles is not installed."""
    for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"bundles need {library}: pip install 'threecad[train]'")


@pytest.fixture(scope="session")
def bundles(fitted: Path) -> dict[str, Path]:
    """Bundles of `fitted` by backend, proved on its own parts."""
    need_backends()
    from threecad.export.bundling import export_run

    folders = {backend: fitted.parent / backend for backend in ("onnx", "openvino")}
    for backend, folder in folders.items():
        export_run(fitted, folder, backend, data=fitted.parent / "data")  # type: ignore[arg-type]
    return folders


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test, so that none finds what another one left."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("THREECAD_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def converted_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `weights` folder of a cache with the embedded backbone in it, converted once a session."""
    from threecad.nets.weights import find_weights
    from threecad.settings import EMBEDDED_BACKBONE

    root = tmp_path_factory.mktemp("converted")
    before = os.environ.get("THREECAD_CACHE")
    os.environ["THREECAD_CACHE"] = str(root)
    try:
        find_weights(EMBEDDED_BACKBONE, "embedded")
    finally:
        os.environ.pop("THREECAD_CACHE")
        if before is not None:
            os.environ["THREECAD_CACHE"] = before
    return root / "weights"


@pytest.fixture
def embedded(cache: Path, converted_weights: Path) -> str:
    """`"embedded"`, once the weights of that backbone lie in the test's cache."""
    shutil.copytree(converted_weights, cache / "weights", copy_function=os.link)
    return "embedded"


@pytest.fixture(scope="session")
def tasks_can_be_imported() -> Iterator[None]:
    """The functions that tests send to other processes lie beside the tests, where another process does not look."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.getenv("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", path)
        yield


@pytest.fixture(scope="session")
def on_ray(tasks_can_be_imported: None) -> Iterator[Engine]:
    """One small cluster that all tests share; starting it takes longer than all of them."""
    pytest.importorskip("ray", reason="the extra threecad[ray] is not installed")
    from threecad.engines.cluster import LOOPBACK, _ray

    ray = _ray()
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address=LOOPBACK, log_to_driver=False, logging_level="ERROR")
    yield Engine("ray", workers=2)
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest, tasks_can_be_imported: None) -> Engine:
    """Two workers of this machine, then of a cluster."""
    return Engine(workers=2) if request.param == "local" else request.getfixturevalue("on_ray")
