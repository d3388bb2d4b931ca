"""Compares the software of a node with that of the driver."""

from __future__ import annotations

import pytest

from glr_dist.errors import ClusterError
from glr_dist.execution.software import check_same, software


def test_the_software_names_the_versions_that_affect_results():
    assert set(software()) == {"Python", "torch", "numpy", "ray", "source of glr_dist"}
    assert "unknown" not in software().values()
    check_same("a", software(), software())


@pytest.mark.parametrize("name", software())
def test_each_part_that_differs_is_refused_and_named(name):
    with pytest.raises(ClusterError) as caught:
        check_same("node-7", {**software(), name: "0"}, software())
    assert str(caught.value).startswith("node node-7 runs different software")
    assert str(caught.value).endswith(f": {name} 0 instead of {software()[name]}")


def test_a_node_that_does_not_report_a_part_is_refused():
    with pytest.raises(ClusterError, match="torch unknown instead of"):
        check_same("a", {name: found for name, found in software().items() if name != "torch"}, software())
