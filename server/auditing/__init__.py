"""The checks of `pilotage audit`."""
