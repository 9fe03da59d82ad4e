"""Measures of quality on finished 8-bit frames. Torch-free, save for what a module says of itself."""

from fastv2v.metrics.drift import Drift, drift
from fastv2v.metrics.floors import MeanColourFloor, previous_frame_floor
from fastv2v.metrics.frechet import frechet_distance, has_few_samples, video_features
from fastv2v.metrics.image import PSNR_CAP_DB, psnr, ssim
from fastv2v.metrics.segmentation import SegmentationScore, confusion_matrix, segmentation_score
from fastv2v.metrics.temporal import Motion, flicker, flows_and_masks, warping_error
from fastv2v.metrics.vmaf import VmafScore, vmaf

__all__ = [
    "PSNR_CAP_DB",
    "Drift",
    "MeanColourFloor",
    "Motion",
    "SegmentationScore",
    "VmafScore",
    "confusion_matrix",
    "drift",
    "flicker",
    "flows_and_masks",
    "frechet_distance",
    "has_few_samples",
    "previous_frame_floor",
    "psnr",
    "segmentation_score",
    "ssim",
    "video_features",
    "vmaf",
    "warping_error",
]
