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
from glr_dist.errors import ConfigError
from glr_dist.execution.address import ray_address
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.robustness.certificates.certify_block import Certified, certify_block
from glr_dist.robustness.certificates.files import CertificateFiles
from glr_dist.robustness.certificates.first_segment import lipschitz_bound
from glr_dist.robustness.certificates.page import markdown
from glr_dist.robustness.certificates.plot import radius_figure
from glr_dist.robustness.certificates.report import CertificateReport, certificates_name, report_of
from glr_dist.robustness.certificates.settings import Certification
from glr_dist.robustness.certificates.smoothing import Smoothing
from glr_dist.robustness.certificates.verdict import Verdict
from glr_dist.robustness.journal import Journal
from glr_dist.robustness.workers import spread
from glr_dist.runs import CheckpointName, RunFolder, deciding
from glr_dist.training import checkpoint
from glr_dist.training.trained_run import TrainedRun, load_run

_TESTED = 32  # images at which the first segment is tested


def certify(
    folder: Path,
    settings: Certification,
    *,
    device: str | None = None,
    actors: int | None = None,
    which: CheckpointName = "newest",
) -> CertificateReport:
    """Certifies a run by randomised smoothing; writes a report, a page and a plot into the run's folder.

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
    noise = RunFolder(files.run).config().noise  # raises before anything is written into a wrong folder
    if settings.input_noise is None and noise.law == "none" and noise.input is not None:
        settings = settings.model_copy(update={"input_noise": noise.input.scale})
    files.check_replaceable(settings)
    run = load_run(files.run, device, checkpoint=which)
    if not run.data.of_images:
        raise ConfigError(
            f"{folder}: data '{run.data.name}' cannot be certified: certificates are for images with one class each"
        )
    certified, lipschitz = _prepared(run, settings)
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, files.folder)
        stack.enter_context(claim(files.folder, purpose=files.name))
        verdicts, journal = _verdicts(certified, files, _fingerprint(run, certified, which), actors)
        report = report_of(
            settings,
            verdicts,
            lipschitz,
            run=files.run.name,
            config=run.config.model_dump(mode="json"),
            checkpoint=which,
            epoch=run.epoch,
            params_sha256=checkpoint.digest(run.net.state_dict()),
            scales={n: s.double().mean().item() for n, s in run.net.scales().items()} if run.net.noise else {},
        )
        _write(files, report)
        journal.remove()
    return report


def _prepared(run: TrainedRun, settings: Certification) -> tuple[Certified, float]:
    """Returns what the blocks share, and L, the noise's standard deviations per unit of distance."""
    split = run.data.test if settings.split == "test" else run.data.validation
    images = split.rows(slice(0, settings.examples)).to(run.device)
    x = images.batch(slice(0, _TESTED))[0]
    smoothing = Smoothing.of(run.net, settings.input_noise, x)
    lipschitz = lipschitz_bound(run.net, x) if settings.input_noise is None else 1 / settings.input_noise
    return Certified(smoothing, images, settings), lipschitz


def _verdicts(
    certified: Certified, files: CertificateFiles, fingerprint: str, actors: int | None
) -> tuple[list[Verdict], Journal]:
    """Returns the verdicts of all images, and the journal that holds them; continues a stopped certification."""
    size, total = certified.settings.block, len(certified.images)
    blocks = range(-(-total // size))

    def fits(entry: Any) -> bool:
        try:
            number, verdicts = entry
            return number in blocks and len([Verdict.of(*v) for v in verdicts]) == min(size, total - number * size)
        except (TypeError, ValueError):
            return False

    journal, entries = Journal.open(files.journal, fingerprint, fits)
    found = {number: [Verdict.of(*verdict) for verdict in verdicts] for number, verdicts in entries}
    work = ((number,) for number in blocks if number not in found)
    threads = 1 if certified.device.type == "cuda" else None
    with _Progress(found, total) as progress:
        spreading = spread(certify_block, certified, work, actors, copied=Certified.copied, threads=threads)
        for (number,), verdicts in spreading:
            journal.append([number, verdicts])
            found[number] = verdicts
            progress.update(verdicts)
    return [verdict for number in blocks for verdict in found[number]], journal


class _Progress:
    """A progress bar over the images; without a terminal, a line at each tenth of them."""

    def __init__(self, found: dict[int, list[Verdict]], total: int) -> None:
        self._total, self._done = total, sum(map(len, found.values()))
        silent = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=self._done, disable=silent, unit="image", dynamic_ncols=True)

    def update(self, verdicts: list[Verdict]) -> None:
        """Reports that a block is finished."""
        self._bar.update(len(verdicts))
        before, self._done = self._done, self._done + len(verdicts)
        if self._bar.disable and 10 * before // self._total < 10 * self._done // self._total:
            print(f"certified {self._done:,} of {self._total:,} images", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _fingerprint(run: TrainedRun, certified: Certified, which: CheckpointName) -> str:
    """Returns a digest of everything that determines the verdicts."""
    settings = certified.settings.model_dump(mode="json")
    parts = [__version__, deciding(run.config), settings, which, certified.smoothing.tile, str(run.device)]
    sha = hashlib.sha256(json.dumps(parts).encode())
    sha.update(checkpoint.digest(run.net.state_dict()).encode())
    sha.update(certified.images.digest().encode())
    sha.update(certified.images.targets().cpu().numpy().tobytes())
    return sha.hexdigest()


def _write(files: CertificateFiles, report: CertificateReport) -> None:
    """Writes the report and its page, then the plot, which may fail."""
    for path in files.all():
        path.unlink()
    write_atomically(files.report, (report.model_dump_json(indent=2) + "\n").encode())
    drawn = draw(files.picture, lambda: radius_figure(report))
    page = markdown(report) + (f"\n![]({files.picture.name})\n" if drawn else "")
    write_atomically(files.page, page.encode())


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
