"""What theory says of distillation, beside experiments: noise, risk, regimes, tangent kernels, classes."""
