"""Simulate the powder pattern of crystals in files.

python -m launch.simulate --structure=a.cif --out=a.xy
python -m launch.simulate --structure=a.cif,b.cif --out=patterns/ --wavelength=0.7107 --peaks
"""

from pathlib import Path

from absl import flags

from launch import cli

FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_list("structure", None, "CIF, POSCAR or xyz files")
    flags.DEFINE_string("out", None, "file for one structure, folder for several")
    flags.DEFINE_float("wavelength", 1.54184, "angstrom")
    flags.DEFINE_list("two_theta_range", ["5", "90"], "first and last angle, degrees")
    flags.DEFINE_float("step", 0.02, "degrees")
    flags.DEFINE_float("fwhm", 0.1, "width of the peaks, degrees")
    flags.DEFINE_bool("peaks", False, "write positions and intensities of the lines instead")


def main() -> None:
    """Read, simulate, write."""
    if not FLAGS.structure or not FLAGS.out:
        raise ValueError("--structure and --out are needed")
    try:
        low, high = (float(x) for x in FLAGS.two_theta_range)
    except ValueError:
        raise ValueError("--two_theta_range needs two numbers, e.g. 5,90") from None

    from xtalnet_jax.crystals.crystal import Crystal
    from xtalnet_jax.pxrd.instrument import Instrument
    from xtalnet_jax.pxrd.io import save_pattern
    from xtalnet_jax.pxrd.pattern import Pattern
    from xtalnet_jax.pxrd.simulate import simulate_pattern, simulate_peaks

    if FLAGS.fwhm <= 0:
        raise ValueError(f"--fwhm={FLAGS.fwhm:g}, expected a width above 0 degrees")
    targets = _targets(FLAGS.structure, FLAGS.out)
    crystals = [Crystal.from_file(path) for path in FLAGS.structure]
    settings = {"wavelength": FLAGS.wavelength, "two_theta_range": (low, high)}
    if FLAGS.peaks:
        found = simulate_peaks(crystals, **settings)
        results = [Pattern(p.two_theta, p.intensity, FLAGS.wavelength) for p in found]
    else:
        shape = Instrument(w=FLAGS.fwhm**2)
        results = simulate_pattern(crystals, step=FLAGS.step, instrument=shape, **settings)
    for result, target in zip(results, targets):
        save_pattern(result, target)
        print(f"{target}: {len(result.two_theta)} points")


def _targets(structures: list[str], out: str) -> list[Path]:
    """Files to write: ``out`` itself for one structure, one file each in the folder ``out``."""
    if len(structures) == 1 and not out.endswith("/") and not Path(out).is_dir():
        return [Path(out)]
    targets = [Path(out) / f"{Path(name).stem}.xy" for name in structures]
    if len(set(targets)) < len(targets):
        raise ValueError(
            "two --structure files have the same name and would overwrite each other; "
            "rename one or simulate them apart"
        )
    Path(out).mkdir(parents=True, exist_ok=True)
    return targets


if __name__ == "__main__":
    cli.run(main)
