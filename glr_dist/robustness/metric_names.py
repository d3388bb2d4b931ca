"""Names of a report's results in `metrics.jsonl` and MLflow. Imports no torch."""

from __future__ import annotations

from glr_dist.robustness.report import Report


def report_metrics(report: Report) -> dict[str, float]:
    """Returns the results of a robustness report by their names in MLflow.

    An example is `robust/paper-test/fgsm_transfer_eps_0.1`. MLflow's pages group metrics by everything before the last
    slash: here by kind, suite and split.
    """
    metrics = {}
    for name, value in report.metrics().items():
        kind, *parts = name.split("/")
        if parts != ["accuracy"] and parts[-1] == "accuracy":
            parts.pop()
        if kind == "robust" and parts[0] != "all_attacks":  # the attack comes first, its threat model second
            parts[:2] = reversed(parts[:2])
        metrics[f"{kind}/{report.name}/{'_'.join(parts)}"] = value
    return metrics
