"""Steps whose numbers no network makes."""

import pytest
import slots


@pytest.fixture(
    scope="module", params=["light", pytest.param("networks", marks=pytest.mark.slow)]
)
def networks(request):
    """`slots.FAMILY` is one that compiles soon; before a release, the UNet's too."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "light":
            patch.setattr(slots, "FAMILY", slots.LIGHT)
        yield
