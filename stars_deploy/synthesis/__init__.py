"""Synthesis of training images from the teacher alone: objectives, generator, image pool."""
