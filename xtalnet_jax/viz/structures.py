"""Crystals as balls in their cell, drawn in perspective-free projection with depth cues."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import ATOMIC_RADII
from xtalnet_jax.viz.style import INK, new_figure

EDGES = tuple(
    (start, tuple(int(i == axis) | s for i, s in enumerate(start)))
    for start in itertools.product((0, 1), repeat=3)
    for axis in range(3)
    if not start[axis]
)
"""The twelve edges of the unit cell, as pairs of corners in fractional coordinates."""

VIEW = (18.0, -65.0)
"""Elevation and azimuth, degrees; c points up."""


def plot_crystals(
    crystals: Sequence[Crystal],
    titles: Sequence[str] | None = None,
    view: tuple[float, float] = VIEW,
    columns: int = 4,
) -> Any:
    """Draw crystals side by side, e.g. the true one and its candidates.

    Atoms on a face, edge or corner of the cell are repeated on the opposite ones. The radius of a
    ball follows the atomic radius; what is farther away is paler.

    Args:
        crystals: what to draw.
        titles: one per crystal.
        view: see `VIEW`.
        columns: crystals per row.

    Raises:
        ValueError: no crystals, or as many titles as crystals are not given.
    """
    titles = [""] * len(crystals) if titles is None else list(titles)
    if not crystals or len(titles) != len(crystals):
        raise ValueError(f"{len(crystals)} crystals, {len(titles)} titles; expected equal and > 0")
    columns = min(columns, len(crystals))
    num_rows = -(-len(crystals) // columns)
    figure = new_figure(3.2 * columns + 0.6, 3.2 * num_rows)
    grid = figure.subplots(num_rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, crystal, title in zip(grid.flat, crystals, titles):
        draw_crystal(axes, crystal, view)
        axes.set_title(title, fontsize=10)
    add_legend(figure, crystals)
    return figure


def _projection(lattice: np.ndarray, elevation_deg: float, azimuth_deg: float) -> np.ndarray:
    """[3, 3] rows: right, up, towards the viewer, with c upwards and a in the a-c plane."""
    up = np.asarray(lattice[2], np.float64) / np.linalg.norm(lattice[2])
    front = lattice[0] - up * (lattice[0] @ up)
    front = front / np.linalg.norm(front)
    side = np.cross(up, front)
    if side @ lattice[1] < 0:  # a left-handed cell is drawn as it is, not mirrored
        side = -side
    elevation, azimuth = np.deg2rad(elevation_deg), np.deg2rad(azimuth_deg)
    ground = np.cos(azimuth) * front + np.sin(azimuth) * side
    viewer = np.cos(elevation) * ground + np.sin(elevation) * up
    right = -np.sin(azimuth) * front + np.cos(azimuth) * side
    upwards = -np.sin(elevation) * ground + np.cos(elevation) * up
    return np.stack([right, upwards, viewer])


def draw_crystal(axes: Any, crystal: Crystal, view: tuple[float, float] = VIEW) -> None:
    """Draw one crystal into axes, which lose their frame; for the arguments see `plot_crystals`."""
    from matplotlib.patches import Circle

    axes.axis("off")
    axes.set_aspect("equal", adjustable="datalim")
    projection = _projection(crystal.lattice, *view)
    numbers, frac = with_boundary_images(crystal)
    looks = [element_look(int(z)) for z in numbers]
    cart = frac @ np.asarray(crystal.lattice, np.float64)
    atoms = cart @ projection.T
    corners = np.array(EDGES, np.float64) @ crystal.lattice @ projection.T  # [12, 2, 3]
    nearest, farthest = corners[..., 2].max(), corners[..., 2].min()

    def fade(colour: Sequence[float], depth: float) -> tuple[float, ...]:
        nearness = np.clip((depth - farthest) / max(nearest - farthest, 1e-9), 0, 1)
        return tuple(c + (1 - c) * 0.5 * (1 - nearness) for c in colour)

    def line(
        start: np.ndarray, end: np.ndarray, colour: float, width: float, behind: float
    ) -> None:
        # In short pieces, each a little behind its own depth, so that balls cover what they hide.
        num_pieces = int(np.ceil(np.linalg.norm(end - start) / 0.5))
        points = start + (end - start) * np.linspace(0, 1, num_pieces + 1)[:, None]
        for p, q in itertools.pairwise(points):
            depth = (p[2] + q[2]) / 2
            axes.plot(
                [p[0], q[0]],
                [p[1], q[1]],
                color=fade((colour,) * 3, depth),
                linewidth=width,
                solid_capstyle="round",
                zorder=depth - behind,
            )

    for start, end in corners:
        line(start, end, 0.15, 0.9, behind=0.8)
    for i, j in bonded_pairs(numbers, cart):
        along = (atoms[j] - atoms[i]) / np.linalg.norm(atoms[j] - atoms[i])
        start, end = atoms[i] + looks[i][1] * along, atoms[j] - looks[j][1] * along
        line(start, end, 0.55, 2.2, behind=0.2)
    for (right, up, depth), (colour, radius) in zip(atoms, looks):
        rim = fade([0.45 * c for c in colour], depth)
        fill = fade(colour, depth)
        axes.add_patch(Circle((right, up), radius, fc=fill, ec=rim, lw=0.7, zorder=depth))
        shine = tuple(c + 0.55 * (1 - c) for c in fill)
        centre = (right - 0.3 * radius, up + 0.3 * radius)
        axes.add_patch(Circle(centre, 0.22 * radius, color=shine, lw=0, zorder=depth))
    axes.autoscale_view()


def bonded_pairs(numbers: np.ndarray, cart: np.ndarray, slack: float = 1.2) -> np.ndarray:
    """Pairs [n, 2] of atoms closer than ``slack`` times the sum of their atomic radii (Slater).

    Two metal atoms are not joined unless the crystal has nothing else. A help for the eye, not a
    statement about chemistry.
    """
    from pymatgen.core import Element

    elements = [Element.from_Z(int(z)) for z in numbers]
    radius = ATOMIC_RADII[np.asarray(numbers)]
    is_metal = np.array([e.is_metal for e in elements])
    distance = np.linalg.norm(cart[:, None] - cart[None], axis=-1)
    is_bond = (distance > 0.4) & (distance < slack * (radius[:, None] + radius[None]))
    if not is_metal.all():
        is_bond &= ~(is_metal[:, None] & is_metal[None])
    return np.argwhere(np.triu(is_bond, 1))


def with_boundary_images(
    crystal: Crystal, tolerance: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and fractional coordinates of all atoms in the closed cell [0, 1]^3.

    An atom within ``tolerance`` (fractional) of a face also appears on the opposite face.
    """
    numbers, coords = [], []
    for number, x in zip(np.asarray(crystal.atomic_numbers), np.asarray(crystal.frac_coords) % 1.0):
        choices = [
            (c, c + 1.0) if c <= tolerance else (c, c - 1.0) if c >= 1 - tolerance else (c,)
            for c in x
        ]
        for image in itertools.product(*choices):
            numbers.append(int(number))
            coords.append(image)
    return np.array(numbers), np.array(coords)


def element_look(number: int) -> tuple[tuple[float, float, float], float]:
    """(colour, radius in angstrom) of an element: hue by the golden angle, fixed for the common."""
    radius = 0.38 * float(ATOMIC_RADII[number])
    if number in COMMON_COLOURS:
        red, green, blue = bytes.fromhex(COMMON_COLOURS[number][1:])
        return (red / 255, green / 255, blue / 255), radius
    hue = (number * 0.381966) % 1.0
    return colorsys.hsv_to_rgb(hue, 0.55, 0.8 - 0.2 * (number % 3) / 2), radius


COMMON_COLOURS = {
    1: "#f2f2f2",
    5: "#f0b8a0",
    6: "#4a4a4a",
    7: "#3d5bd9",
    8: "#e0342b",
    9: "#8fd14f",
    14: "#e8c48a",
    15: "#f08a24",
    16: "#f2d230",
    17: "#37b54a",
    35: "#9c3a22",
    53: "#7d3c98",
}
"""Elements that chemists expect in a certain colour."""


def add_legend(figure: Any, crystals: Sequence[Crystal]) -> None:
    """Name the colours of all elements of the crystals at the right of the figure."""
    from matplotlib.lines import Line2D
    from pymatgen.core import Element

    numbers = sorted({int(z) for c in crystals for z in np.asarray(c.atomic_numbers)})
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=8, markeredgecolor=INK,
               markeredgewidth=0.4, color=element_look(z)[0], label=Element.from_Z(z).symbol)
        for z in numbers
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
