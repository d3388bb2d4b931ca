"""Rules: from the logit gradients δ of a site to the gradients of the parameters that its segment owns.

A rule for a layer type, `rule(module, x, delta) -> {attribute: gradient}`, applies to segments whose only trainable
parameters are that layer's own; `any_segment` applies to all others.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from glr_dist.network import Network
from glr_dist.rules.any_segment import any_segment
from glr_dist.rules.conv import conv2d
from glr_dist.rules.linear import linear
from glr_dist.sites import Site

__all__ = ["RULES", "any_segment", "direct_parameters", "direct_rule"]

Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]
RULES: dict[type[nn.Module], Rule] = {nn.Linear: linear, nn.Conv2d: conv2d}


def direct_parameters(network: Network, site: Site) -> dict[str, str] | None:
    """Returns the names in the model of the parameters that the site's rule gives a gradient, by attribute.

    None if the site's segment needs `any_segment`.
    """
    module = site.module
    names = {parameter: name for name, parameter in network.parameters.items()}  # a tied parameter has one name
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    named = {attribute: names[parameter] for attribute, parameter in own if parameter in names}
    if type(module) not in RULES or site.upstream or set(named.values()) != set(site.owned):
        return None
    if site.name in network.altered or not set(named) <= {
        "weight",
        "bias",
    }:  # a changed layer, which the rule does not know
        return None
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or module.padding == "same"):
        return None
    return named


def direct_rule(network: Network, site: Site) -> Callable[[Tensor, Tensor], dict[str, Tensor]] | None:
    """Returns (x, δ) -> gradients by name in the model, or None if the site's segment needs `any_segment`."""
    named, module = direct_parameters(network, site), site.module
    if named is None:
        return None
    rule = RULES[type(module)]

    def gradients(x: Tensor, delta: Tensor) -> dict[str, Tensor]:
        grads = rule(module, x, delta)
        return {name: grads[attribute] for attribute, name in named.items()}

    return gradients
