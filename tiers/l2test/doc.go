// Package l2test is for tests of what stands on a [tiers.Store]: [Memory] is one in memory that can
// fail, hang and forget, also in virtual time; [Exercise] is what every Store must pass, the real one
// and this.
package l2test
