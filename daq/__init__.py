"""The DAQ emulator: writes .spd files as a detector would."""
