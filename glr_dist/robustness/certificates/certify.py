"""Certifies runs: block by block, in this process or on Ray actors."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glr_dist import __version__
from glr_dist.claims import claim
from glr_dist.config import Noise
from glr_dist.data import Split
from glr_dist.errors import ConfigError
from glr_dist.execution.address import ray_address
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.robustness.certificates.files import AnyReport, CertificateFiles
from glr_dist.robustness.certificates.methods import Method, Shared, figure_of_report, method_of, page_of
from glr_dist.robustness.certificates.report import certificates_name
from glr_dist.robustness.certificates.settings import AnyCertification, Certification
from glr_dist.robustness.journal import Journal
from glr_dist.robustness.workers import spread
from glr_dist.runs import CheckpointName, RunFolder, deciding
from glr_dist.training import checkpoint
from glr_dist.training.trained_run import TrainedRun, load_run


def certify(
    folder: Path,
    settings: AnyCertification,
    *,
    device: str | None = None,
    actors: int | None = None,
    which: CheckpointName = "newest",
) -> AnyReport:
    """Certifies a run, by randomised smoothing or by bounds; writes a report, a page and a plot into the run's folder.

    The files are `certificates/NAME-SPLIT.json`, `….md` and `….png` (see `CertificateFiles`).

    Args:
        folder: the run's folder.
        settings: the settings. A network without noise of its own that was trained with `noise.input` is smoothed by
            noise of that scale if `input_noise` is not given.
        device: "auto", "cpu" or "cuda[:N]" in place of the run's own device.
        actors: number of Ray actors, on CPUs; 0: certify in this process. Default: as many as fit on the cluster at
            RAY_ADDRESS, or 0 if RAY_ADDRESS is not set.
        which: the checkpoint of the run: "newest", or "best".

    Returns:
        The report.

    Raises:
        UserError: the folder is not a run, the network cannot be certified, the results belong to other settings,
            another process certifies the run, or the cluster has no room.
        ContradictionError: an attack contradicts a certificate; no report is written.
        OSError: the folder cannot be written.
    """
    keep_freed_memory()
    if actors is None and ray_address() is None:
        actors = 0
    if actors != 0:
        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"--device: {device!r} is not allowed: Ray actors certify on CPUs; add --actors 0")
        device = "cpu"
    files = CertificateFiles(folder.absolute(), certificates_name(settings, which))
    # Reading the configuration raises before anything is written into a wrong folder.
    settings = with_noise_of(RunFolder(files.run).config().noise, settings)
    files.check_replaceable(settings)
    run = load_run(files.run, device, checkpoint=which)
    if not run.data.of_images:
        raise ConfigError(
            f"{folder}: data '{run.data.name}' cannot be certified: certificates are for images with one class each"
        )
    images = _images(run, settings)
    method = method_of(run, images, settings)
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, files.folder)
        stack.enter_context(claim(files.folder, purpose=files.name))
        fingerprint = _fingerprint(run, images, settings, which, method.fingerprint)
        verdicts, journal = _verdicts(method, files.journal, fingerprint, settings, actors)
        report = _report(method, verdicts, run, which)
        _write(files, report)
        journal.remove()
    return report


def certify_in_training(run: TrainedRun, settings: AnyCertification, journal: Path) -> AnyReport:
    """Certifies a network that is being trained, in this process; writes no report.

    Args:
        run: the run, with the network of its last epoch.
        settings: the settings.
        journal: the file of the finished blocks, from which a stopped certification of the same network continues.

    Raises:
        UserError: the network cannot be certified.
        ContradictionError: an attack contradicts a certificate.
        OSError: the journal cannot be written.
    """
    settings = with_noise_of(run.config.noise, settings)
    images = _images(run, settings)
    method = method_of(run, images, settings)
    fingerprint = _fingerprint(run, images, settings, "newest", method.fingerprint)
    verdicts, opened = _verdicts(method, journal, fingerprint, settings, 0, passing=True)
    report = _report(method, verdicts, run, "newest")
    opened.remove()
    return report


def certifiable(run: TrainedRun, settings: AnyCertification) -> None:
    """Checks that a network can be certified, whatever its parameters.

    Raises:
        UserError: it cannot; names the module.
    """
    settings = with_noise_of(run.config.noise, settings)
    method_of(run, _images(run, settings), settings)


def with_noise_of(noise: Noise, settings: AnyCertification) -> AnyCertification:
    """Returns the settings with the input noise of a run's training, if it had no other noise and they name none."""
    smoothed = isinstance(settings, Certification) and settings.input_noise is None
    if smoothed and noise.law == "none" and noise.input is not None:
        return settings.model_copy(update={"input_noise": noise.input.scale})
    return settings


def _images(run: TrainedRun, settings: AnyCertification) -> Split:
    split = run.data.test if settings.split == "test" else run.data.validation
    return split.rows(slice(0, settings.examples)).to(run.device)


def _report(method: Method, verdicts: list[Any], run: TrainedRun, which: CheckpointName) -> AnyReport:
    return method.report(
        verdicts,
        run=run.folder.path.name,
        config=run.config.model_dump(mode="json"),
        checkpoint=which,
        epoch=run.epoch,
        params_sha256=checkpoint.digest(run.net.state_dict()),
    )


def _verdicts(
    method: Method,
    journal: Path,
    fingerprint: str,
    settings: AnyCertification,
    actors: int | None,
    *,
    passing: bool = False,
) -> tuple[list[Any], Journal]:
    """Returns the verdicts of all images, and the journal that holds them; continues a stopped certification."""
    size, total = settings.block, len(method.shared.images)
    blocks = range(-(-total // size))

    def fits(entry: Any) -> bool:
        try:
            number, verdicts = entry
            return number in blocks and len([method.verdict(v) for v in verdicts]) == min(size, total - number * size)
        except (TypeError, ValueError):
            return False

    opened, entries = Journal.open(journal, fingerprint, fits)
    found = {number: [method.verdict(verdict) for verdict in verdicts] for number, verdicts in entries}
    work = ((number,) for number in blocks if number not in found)
    threads = 1 if method.shared.device.type == "cuda" else None
    with _Progress(sum(map(len, found.values())), total, passing=passing) as progress:
        spreading = spread(method.block, method.shared, work, actors, copied=_copied, threads=threads)
        for (number,), verdicts in spreading:
            opened.append([number, verdicts])
            found[number] = list(verdicts)
            progress.update(len(verdicts))
    return [verdict for number in blocks for verdict in found[number]], opened


def _copied(shared: Shared) -> Shared:
    return shared.copied()


class _Progress:
    """A progress bar over the images; without a terminal, a line at each tenth of them.

    Args:
        done: number of images that are certified already.
        total: number of all images.
        passing: show nothing but a bar, which vanishes at the end.
    """

    def __init__(self, done: int, total: int, *, passing: bool) -> None:
        self._total, self._done, self._passing = total, done, passing
        bar: dict[str, Any] = {"disable": not sys.stderr.isatty(), "leave": not passing, "dynamic_ncols": True}
        self._bar = tqdm(total=total, initial=done, unit="image", **bar)

    def update(self, count: int) -> None:
        """Reports that a block is finished."""
        self._bar.update(count)
        before, self._done = self._done, self._done + count
        silent = self._passing or not self._bar.disable
        if not silent and 10 * before // self._total < 10 * self._done // self._total:
            print(f"certified {self._done:,} of {self._total:,} images", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _fingerprint(run: TrainedRun, images: Split, settings: AnyCertification, which: CheckpointName, more: Any) -> str:
    """Returns a digest of everything that determines the verdicts."""
    parts = [__version__, deciding(run.config), settings.model_dump(mode="json"), which, more, str(run.device)]
    sha = hashlib.sha256(json.dumps(parts).encode())
    sha.update(checkpoint.digest(run.net.state_dict()).encode())
    sha.update(images.digest().encode())
    sha.update(images.targets().cpu().numpy().tobytes())
    return sha.hexdigest()


def _write(files: CertificateFiles, report: AnyReport) -> None:
    """Writes the report and its page, then the plot, which may fail."""
    for path in files.all():
        path.unlink()
    write_atomically(files.report, (report.model_dump_json(indent=2) + "\n").encode())
    drawn = draw(files.picture, lambda: figure_of_report(report))
    page = page_of(report) + (f"\n![]({files.picture.name})\n" if drawn else "")
    write_atomically(files.page, page.encode())


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
