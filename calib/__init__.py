"""The calibrator: fake quantizers, PTQD statistics, corrections and the choice of a precision per step."""
