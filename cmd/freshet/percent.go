package main

import (
	"fmt"
	"strconv"
	"strings"
)

// percent is a share of requests, as a flag: "2%" or "0.02", from 0 to 50 %.
type percent float64

// maxPercent is half of all requests.
const maxPercent percent = 0.5

// Set implements [pflag.Value].
func (p *percent) Set(s string) error {
	number, isPercent := strings.CutSuffix(strings.TrimSpace(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return fmt.Errorf("%.20q is not a share; want one such as 2%% or 0.02", s)
	}
	if isPercent {
		v /= 100
	}
	// Written so that NaN fails.
	if !(v >= 0 && percent(v) <= maxPercent) {
		return fmt.Errorf("%.20q; want 0%% to %s", s, maxPercent)
	}
	*p = percent(v)
	return nil
}

// String implements [pflag.Value].
func (p percent) String() string { return strconv.FormatFloat(float64(p)*100, 'f', -1, 64) + "%" }

// Type implements [pflag.Value].
func (percent) Type() string { return "percent" }
