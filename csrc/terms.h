#pragma once

// The operators that combine tensors linearly: what each asks of its arguments and which weights it
// gives them (kernels/linear.h), the same on every device.

#include <optional>
#include <vector>

#include "checks.h"
#include "kernels/linear.h"

namespace sda_fast {

struct Terms {
  std::vector<Tensor> tensors;
  std::vector<double> weights;
};

inline void check_mu(double mu) { check(mu > 0.0, "mu must be above 0, but is ", mu, "."); }

// Appends tensors like x, between `least` and `most` of them, each with a weight.
inline void append(Terms& terms, const char* name, const std::vector<Tensor>& tensors, size_t least,
                   size_t most, const char* weights_name, const std::vector<double>& weights) {
  const Tensor x = terms.tensors[0];
  check(tensors.size() >= least && tensors.size() <= most, name, " must have ", least, " to ", most,
        " tensors, but has ", tensors.size(), ".");
  check(weights.size() == tensors.size(), weights_name, " must have as many numbers as ", name,
        " has tensors, ", tensors.size(), ", but has ", weights.size(), ".");
  for (size_t j = 0; j < tensors.size(); ++j) {
    check_like(ElementOf{name, j}, tensors[j], "x", x);
    terms.tensors.push_back(tensors[j]);
    terms.weights.push_back(weights[j]);
  }
}

inline Terms predictor_terms(const Tensor& x, const Tensor& eps, double r, double b) {
  check_state("x", x, 0);
  check_like("eps", eps, "x", x);
  return {{x, eps}, {r, b}};
}

inline Terms multistep_terms(const Tensor& x, const std::vector<Tensor>& eps, double r,
                             const std::vector<double>& b) {
  check_state("x", x, 0);
  Terms terms = {{x}, {r}};
  append(terms, "eps", eps, 1, kMostTerms - 1, "b", b);
  return terms;
}

inline Terms denoise_terms(const Tensor& x, const Tensor& eps, double mu, double sigma) {
  const Terms terms = predictor_terms(x, eps, 1.0 / mu, -sigma / mu);
  check_mu(mu);
  return terms;
}

inline Terms guide_terms(const Tensor& eps, const Tensor& direct,
                         const std::optional<Tensor>& through, double mu, double sigma) {
  check_state("eps", eps, 0);
  check_like("direct", direct, "eps", eps);
  if (through) check_like("through", *through, "eps", eps);
  check_mu(mu);
  Terms terms = {{eps, direct}, {1.0, -sigma / mu}};
  if (through) {
    terms.tensors.push_back(*through);
    terms.weights.push_back(sigma * sigma / mu);
  }
  return terms;
}

// The step of the predictor with an eps that is still to be guided.
inline Terms guided_step_terms(const Tensor& x, const Tensor& eps, double r, double b,
                               const std::vector<Tensor>& past, const std::vector<double>& past_b) {
  Terms terms = predictor_terms(x, eps, r, b);
  append(terms, "past", past, 0, 2, "past_b", past_b);
  return terms;
}

// The same, in the order of `like`.
inline Terms ordered_as(const Tensor& like, Terms terms) {
  for (Tensor& t : terms.tensors) t = ordered_as(like, t);
  return terms;
}

// The same, to be added up in place of the first.
inline Terms in_place(Terms terms, const InPlace& target) {
  terms.tensors[0] = target.work;
  for (size_t j = 1; j < terms.tensors.size(); ++j) {
    terms.tensors[j] = target.beside(terms.tensors[j]);
  }
  return terms;
}

// Of an operator that makes eps the guided estimate and then steps x with it, both in place: the
// tensors that it works on, contiguous; or, if it does the same to every element, dense and in the
// same order. What it only reads, it reads as that was before.
struct Guided {
  Guided(const Tensor& x, const Tensor& eps, const Tensor& direct,
         const std::optional<Tensor>& through, double mu, double sigma, bool elementwise = false)
      : terms(guide_terms(eps, direct, through, mu, sigma)),
        x(x, "x", elementwise && same_order(x, eps)),
        eps(eps, "eps", elementwise && same_order(x, eps)) {
    check(!overlap(this->x.work, this->eps.work), "x and eps must not share memory, but do.");
    terms.tensors[0] = this->eps.work;
    for (size_t j = 1; j < terms.tensors.size(); ++j) {
      terms.tensors[j] = this->x.beside(this->eps.beside(terms.tensors[j]));
    }
  }

  // Makes a step's terms those that it works on: x, eps and past estimates.
  void place(Terms& step) const {
    step.tensors[0] = x.work;
    step.tensors[1] = eps.work;
    for (size_t j = 2; j < step.tensors.size(); ++j) {
      const Tensor t = ordered_as(x.work, step.tensors[j]);
      step.tensors[j] = x.beside(overlap(t, eps.work) ? torch::stable::clone(t) : t);
    }
  }

  void finish() {
    eps.finish();
    x.finish();
  }

  Terms terms;  // of the guided estimate
  InPlace x, eps;
};

// Of tensors that are dense and in the same order.
template <typename T>
Linear<T> linear_args(const Terms& terms, const Tensor& out) {
  Linear<T> args = {};
  args.count = static_cast<int>(terms.tensors.size());
  for (int j = 0; j < args.count; ++j) {
    args.terms[j] = static_cast<const T*>(terms.tensors[j].data_ptr());
    args.weights[j] = static_cast<Accumulate<T>>(terms.weights[j]);
  }
  args.out = static_cast<T*>(out.data_ptr());
  args.size = out.numel();
  return args;
}

}  // namespace sda_fast
