"""Floating-point operations of a program, counted from its jaxpr."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from ti_flax.models import attention
from ti_flax.step import train_step
from ti_flax.step.abstract import RunShapes, abstract_arguments


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of one call, two for each multiply-add of a product or convolution.

    Arguments may be `jax.ShapeDtypeStruct`s. The body of a loop with a traced trip
    count is counted once, of several branches the costliest. Recomputation
    (`jax.checkpoint`) and kernels are not for this: trace without them.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    # Nobody asks for the gradients to frozen kernels, which custom ones compute.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: core.JaxprEqn) -> float:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lengths = (equation.invars[0].aval.shape[axis] for axis in contracted)
            return 2.0 * math.prod(lengths) * _size(equation.outvars[0])
        case "conv_general_dilated":
            # Every output is a product with the kernel of one output channel; where the
            # input is spread out, as in the gradient of a stride, most factors are 0.
            kernel = equation.invars[1]
            channels = kernel.aval.shape[params["dimension_numbers"].rhs_spec[0]]
            a_window = _size(kernel) / channels / math.prod(params["lhs_dilation"])
            return 2.0 * a_window * _size(equation.outvars[0])
        case "scan":
            return params["length"] * _count(params["jaxpr"].jaxpr)
        case "cond":
            return max(_count(branch.jaxpr) for branch in params["branches"])
    return sum(map(_count, _inside(params)))


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def count_step(recipe: train_step.StepRecipe, run: RunShapes) -> float:
    """Floating-point operations that one step asks for, all devices together."""
    plan = attention.Plan("plain", recipe.mesh)
    family = recipe.family.clone_denoiser(plan=plan, remat=False)
    recipe = recipe._replace(family=family)
    state, frozen, bank = abstract_arguments(recipe, run)
    one_step = functools.partial(train_step.train_step, recipe=recipe)
    return count(one_step, state, frozen, bank)
