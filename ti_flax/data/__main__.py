"""`python -m ti_flax.data DIR`: see `doctor`."""

from ti_flax import errors
from ti_flax.data import doctor

if __name__ == "__main__":
    errors.run(doctor.main)
