"""The paper's algebra: filters, schedules, losses, weights, diagnostics and the recursion.

Pure functions of eigenvalues and small triangles. No kernel, no solver, no device: they run on any
array API library.

===========================  =================================================
equation of the paper        function
===========================  =================================================
(1)-(5)                      :func:`~sdgpu.distill.recursion.recursion`
(6), (7), Theorem 4.1        :func:`~sdgpu.distill.schedules.coefficients`
(8), (9)                     :func:`~sdgpu.distill.filters.shrinkage`
(10)-(12), Lemma 4.2         :func:`~sdgpu.distill.filters.train_filter`
(13)                         :func:`~sdgpu.distill.filters.dual_filter`
(14), Theorem 4.3            :func:`~sdgpu.distill.diagnostics.ratios`
(15)                         :func:`~sdgpu.distill.diagnostics.sign_rule`
(16), Algorithm 1            :func:`~sdgpu.distill.optimal_weights.greedy_weights`
(17), Theorem 4.5            :func:`~sdgpu.distill.filters.limit_train_filter`
leave-one-out of every step  :func:`~sdgpu.distill.leave_one_out.leave_one_out`
(20)-(24), Appendix D        :func:`~sdgpu.distill.loss_tolerance.constrained_steps`
a lam for each step          :func:`~sdgpu.distill.lam_schedules.backward_dual_filters`
rounds of made labels        :func:`~sdgpu.distill.label_rounds.label_rounds`
(25), (26), Theorem D.2      :func:`~sdgpu.distill.loss_tolerance.constrained_sign_rule`
===========================  =================================================
"""
