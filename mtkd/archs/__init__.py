"""Networks: the students and teachers EDSR, RCAN and SwinIR, the fusion network DCTSwin, and ensembles of teachers."""
