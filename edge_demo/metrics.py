"""The demo's figures for Prometheus: counters read at each scrape, histograms filled per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_demo.events import Event, ResultEvent
from edge_demo.figures import STAGES, stage_ms
from edge_demo.live import Live
from edge_demo.loop import Processed

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# From a tenth of a millisecond (a tiny model) to ten seconds (a stalled source), in s.
STAGE_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
AGE_BUCKETS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
THERMAL = Path("/sys/class/thermal")


class Metrics:
    """One registry of its own, so that two demos in one process do not mix.

    Args:
        live: The demo as it is now.
        viewers: How many watch the web view.
    """

    def __init__(self, live: Callable[[], Live], viewers: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Histogram, ProcessCollector

        self._live, self._viewers = live, viewers
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._age = Histogram(
            "edge_frame_age_seconds",
            "From capture to the decoded result.",
            buckets=AGE_BUCKETS,
            registry=self._registry,
        )
        stages = Histogram(
            "edge_stage_seconds", "Time spent on one frame.", ["stage"], buckets=STAGE_BUCKETS, registry=self._registry
        )
        self._stages = {name: stages.labels(name) for name in STAGES}

    def heard(self, event: Event, processed: Processed | None) -> None:
        """Count one processed frame."""
        if processed is None or not isinstance(event, ResultEvent):
            return
        self._age.observe(processed.age_ms / 1000)
        for name, value in stage_ms(processed).items():
            self._stages[name].observe(value / 1000)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The exposition in the format the scraper accepts, and its content type."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """What is read at the moment of a scrape (prometheus_client calls this)."""
        live = self._live()
        yield from _counters(live)
        yield from _gauges(live, self._viewers())

    def describe(self) -> list[Metric]:
        """Nothing: `collect` must not be called before the demo runs."""
        return []


def _counters(live: Live) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    totals = {
        "edge_frames_captured": ("Frames the source delivered.", live.captured),
        "edge_frames_processed": ("Frames with a result.", live.processed),
        "edge_reconnects": ("Times a lost source was opened again.", live.reconnects),
        "edge_stalls": ("Times a live source was silent too long.", live.stalls),
    }
    for name, (text, value) in totals.items():
        yield CounterMetricFamily(name, text, value=value)
    dropped = CounterMetricFamily("edge_frames_dropped", "Frames lost on the way.", labels=["reason"])
    dropped.add_metric(["model_busy"], live.dropped)
    if live.recording is not None:
        dropped.add_metric(["disk_busy"], live.recording.dropped)
    yield dropped


def _gauges(live: Live, viewers: int) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    def gauge(name: str, text: str, value: float) -> Any:
        return GaugeMetricFamily(name, text, value=value)

    yield gauge("edge_source_up", "1 while the source gives frames.", float(live.state == "LIVE"))
    yield gauge("edge_healthy", "1 while fresh frames are processed.", float(not live.unhealthy))
    yield gauge("edge_paused", "1 while a person paused the processing.", float(live.paused))
    yield gauge("edge_web_viewers", "Live pictures being watched.", viewers)
    if live.last_frame_s is not None:
        yield gauge("edge_last_frame_seconds", "Since the newest processed frame was captured.", live.last_frame_s)
    if live.behind_ms is not None:
        yield gauge("edge_backlog_seconds", "How far the stream's reader is behind its camera.", live.behind_ms / 1000)
    rates = GaugeMetricFamily("edge_fps", "Frames per second, last seconds.", labels=["kind"])
    for kind, value in (("capture", live.capture_fps), ("infer", live.fps)):
        if value is not None:
            rates.add_metric([kind], value)
    yield rates
    if live.recording is not None:
        yield gauge("edge_recording", "1 while recording.", float(live.recording.state == "recording"))
        yield gauge("edge_recording_bytes", "All recordings in the folder.", live.recording.bytes)
    celsius = temperature_c()
    if celsius is not None:
        yield gauge("edge_device_temperature_celsius", "Hottest thermal zone of the device.", celsius)
    build = {"model": live.model, "task": live.task, "runtime": live.runtime, "precision": live.precision}
    yield InfoMetricFamily("edge_build", "What is running.", value=build)


def temperature_c(folder: Path = THERMAL) -> float | None:
    """The hottest thermal zone in degrees Celsius; None where the system tells none.

    Source: Linux kernel documentation, "Generic Thermal Sysfs driver": millidegrees.
    """
    values = []
    for zone in folder.glob("thermal_zone*/temp"):
        try:
            values.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue  # a zone that is switched off cannot be read
    return max(values, default=None)
