"""Losses between a student's and a teacher's feature maps, as pure functions, one idea a file.

Every function takes `(student_features, teacher_features)`, float tensors (N, C, H, W) unless it says otherwise, and
returns one unweighted scalar. They hold in common:

- the teacher's tensor is detached inside; only the student's (and an estimator's) receives a gradient;
- half-precision input is computed in float32, also under autocast;
- gradients are finite everywhere. A vector of exactly zero has no direction, so where a formula divides by its norm it
  contributes to the value as published (as zero) and receives no gradient; published code gives NaN there;
- taps whose shapes cannot be compared are an `MtkdError`. Nothing is resized silently.

Values were checked against the methods' own code. Weights between these terms and a pixel loss depend on the image
range: FAKD's and CSD's published weights belong to images in 0..255 and are divided by 255 for [0, 1].
"""
