"""Measures of quality on finished 8-bit frames. Torch-free, save for what a module says of itself."""

from fastv2v.metrics.floors import MeanColourFloor, previous_frame_floor
from fastv2v.metrics.image import PSNR_CAP_DB, psnr, ssim
from fastv2v.metrics.temporal import Motion, flicker, flows_and_masks, warping_error
from fastv2v.metrics.vmaf import VmafScore, vmaf

__all__ = [
    "PSNR_CAP_DB",
    "MeanColourFloor",
    "Motion",
    "VmafScore",
    "flicker",
    "flows_and_masks",
    "previous_frame_floor",
    "psnr",
    "ssim",
    "vmaf",
    "warping_error",
]
