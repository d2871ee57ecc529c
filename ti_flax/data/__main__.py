"""`python -m ti_flax.data DIR`: see `doctor`."""

from ti_flax.data import doctor
from ti_flax.runtime import errors

if __name__ == "__main__":
    errors.run(doctor.main)
