"""Export: student to SpikingGraph, passes, and quantisation to the chip's integers."""
