"""Synthesis of training images from the teacher alone: objectives, backbones, image pool."""
